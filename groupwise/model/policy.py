"""The policy: a causal language model, what of it is trained, and the frozen reference it started from.

With LoRA the base is the same network with its adapter switched off; without LoRA it is a frozen copy taken from
memory, or, where training itself never runs it, loaded again for as long as something is measured against it, and then
held to the hash of what training started from. Base weights are never written. The reference is the base until a
schedule moves it. Dropout is off everywhere.
Knows nothing about groups, losses or sampling.
"""

import contextlib
import copy
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from groupwise.errors import UserError
from groupwise.model.head import OutputHead, head_error
from groupwise.model.heap import return_what_is_freed
from groupwise.model.nf4 import is_nf4, loading_options, plain_weight, run_exactly, stored_transposed
from groupwise.model.sharding import gathered, shard, whole_tensor
from groupwise.model.zero import Zero
from groupwise.sections import LoraSection, ModelSection

_REFERENCE = "reference.safetensors"
_NOT_OF_THE_FUNCTION = frozenset({"_name_or_path", "transformers_version"})
# Mamba reads the weights of these layers directly and would pass an adapter by.
_BYPASSED_BY_MAMBA = ["out_proj", "dt_proj"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Policy:
    """A causal language model under training, the base it started from, and the reference that it is held to.

    `model` is the Transformers model (adapter layers injected where LoRA is used); `active` is the network to run:
    the policy, or inside `with policy.base():` and `with policy.reference():` those.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora: LoraSection | None,
        seed: int = 0,
        gradient_checkpointing: bool = False,
        base_file: ModelSection | None = None,
    ) -> None:
        """`base_file` is where the base may be loaded from again, so that without LoRA no copy of it is held."""
        self.tokenizer = tokenizer
        self.model = model
        if lora is None and any(is_nf4(module) for module in model.modules()):
            raise UserError("lora: null: the weights of this model are stored in four bits; train an adapter instead")
        _as_one_function(model)
        self._peft: PeftModel | None = None
        self._frozen: PreTrainedModel | None = None
        self._base_file = base_file if lora is None else None
        self._base_hash: str | None = None
        if self._base_file is not None:
            self._base_hash = _fingerprint(model)
        elif lora is None:
            self._frozen = copy.deepcopy(model).requires_grad_(False)
        if lora is None:
            model.requires_grad_(True)
        else:
            self._peft = _add_adapter(model, lora, seed)
        self.sharded = False  # whether weights, or what is learned of them, are spread over processes
        self._zero: Zero | None = None
        self._in_base = False
        self._moved: dict[str, Tensor] | None = None  # trained weights of a reference that left the base
        self._in_moved = False
        self._own_attention = self.attention
        model.eval()
        self.head_error = head_error(model)
        self._recomputed: list[nn.Module] = _checkpoint_layers(model) if gradient_checkpointing else []
        if gradient_checkpointing and self.device.type == "cpu":
            return_what_is_freed()  # who gives time for memory should get it

    @classmethod
    def load(
        cls,
        section: ModelSection,
        lora: LoraSection | None,
        *,
        seed: int,
        device: torch.device | str,
        keep_base: bool = True,
        mesh: DeviceMesh | None = None,
    ) -> "Policy":
        """Load model and tokenizer from a folder or the hub.

        Without LoRA a frozen copy of the base is held, or, `keep_base` being False, loaded whenever it is asked for.
        With a `mesh` the layers are spread over its processes, one after the other, before the rest goes to the device.
        Raises UserError when the path holds no model, or when its weights are not safetensors.
        """
        tokenizer = _load_tokenizer(section)
        model = load_network(section)
        if mesh is None:
            cast(nn.Module, model).to(device)
        policy = cls(
            model,
            tokenizer,
            lora=lora,
            seed=seed,
            gradient_checkpointing=section.gradient_checkpointing,
            base_file=None if keep_base or mesh is not None else section,
        )
        if mesh is not None:
            policy._shard(mesh, device)
        return policy

    def _shard(self, mesh: DeviceMesh, device: torch.device | str) -> None:
        self._base_hash = self.base_fingerprint()
        for network in self.networks():
            adapter = () if self._peft is None else self.trainable().values()
            shard(network, mesh, whole=adapter)
            cast(nn.Module, network).to(device)
        self.sharded = True

    def spread_by(self, spread: Callable[[PreTrainedModel], Zero]) -> Zero:
        """Let ZeRO hold the model from now on; a frozen copy stays whole."""
        self._base_hash = self.base_fingerprint()
        self._zero = spread(self.model)
        self.sharded = True
        return self._zero

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """A forward pass of the active network, as whoever holds its weights wants it run."""
        return work() if self._zero is None or self.active is not self.model else self._zero.run(work)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss of this process; losses of several processes are summed."""
        if self._zero is None:
            loss.backward()
        else:
            self._zero.backward(loss)

    @contextlib.contextmanager
    def _gathered(self) -> Generator[None, None, None]:
        """Inside, this process holds all weights and needs nobody else. Every process enters and leaves."""
        if self._zero is not None:
            with self._zero.gathered():
                yield
        elif self.sharded:
            with gathered(self.active):
                yield
        else:
            yield

    @property
    def active(self) -> PreTrainedModel:
        """The network that a forward pass should run now."""
        if self._in_base and self._frozen is not None:
            return self._frozen
        return self.model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def recomputes(self) -> bool:
        """Whether layers run again in the backward pass (gradient checkpointing)."""
        return bool(self._recomputed)

    def networks(self) -> list[PreTrainedModel]:
        """What is held in memory: the model, and without LoRA its frozen copy."""
        return [self.model] if self._frozen is None else [self.model, self._frozen]

    @contextlib.contextmanager
    def base(self) -> Generator[None, None, None]:
        """Inside, the active network is the one that training started from; may be nested.

        Raises UserError where it has to be loaded again and is no longer what it was.
        """
        if self._in_base:
            # PEFT's own context would switch the adapter on at the end of the inner one.
            yield
            return
        with self._peft.disable_adapter() if self._peft is not None else self._loaded_base():
            self._in_base = True
            try:
                yield
            finally:
                self._in_base = False

    @contextlib.contextmanager
    def _loaded_base(self) -> Generator[None, None, None]:
        """Inside, a base that is not held is in memory."""
        if self._base_file is None:
            yield
            return
        network = load_network(self._base_file)
        _as_one_function(network)
        if _fingerprint(network) != self._base_hash:
            raise UserError(f"model.path: {self._base_file.path} has changed since this run loaded it; put it back")
        cast(nn.Module, network).to(self.device)
        network.requires_grad_(False).eval()
        network.set_attn_implementation(self.attention)
        self._frozen = network
        try:
            yield
        finally:
            self._frozen = None

    @contextlib.contextmanager
    def reference(self) -> Generator[None, None, None]:
        """Inside, the active network is what a KL pulls to: the base, or where `move_reference` took it; may be nested.

        No backward pass may be due.
        """
        if self._moved is None:
            with self.base():
                yield
            return
        if self._in_moved:
            yield
            return
        self._exchange(self._moved)
        self._in_moved = True
        try:
            yield
        finally:
            self._in_moved = False
            self._exchange(self._moved)

    @torch.no_grad()
    def move_reference(self, mix: float) -> None:
        """Trained weights of the reference become mix * policy + (1 - mix) * reference, with 0 < mix <= 1.

        mix 1 makes the reference a copy of the policy, as each iteration of Algorithm 1 of the GRPO paper does; less
        is the soft update of TR-DPO (arXiv 2404.09656). With LoRA the two factors of an update are averaged, not their
        product. Costs memory for one more set of trained weights.
        """
        reference = self._moved or self._base_weights()
        self._moved = {name: torch.lerp(reference[name], p.detach(), mix) for name, p in self.trainable().items()}

    def save_reference(self, folder: Path) -> None:
        """Write where the reference was moved to; nothing while it is the base."""
        if self._moved is not None:
            save_file({name: value.cpu().contiguous() for name, value in self._moved.items()}, folder / _REFERENCE)

    def restore_reference(self, folder: Path) -> None:
        """Put back what `save_reference` wrote."""
        file = folder / _REFERENCE
        # Cloned: tensors inside a file's buffer are aligned otherwise, and matrix products then round otherwise.
        saved = load_file(file, device=str(self.device)) if file.is_file() else None
        self._moved = None if saved is None else {name: value.clone() for name, value in saved.items()}

    def _base_weights(self) -> Mapping[str, Tensor]:
        """What `trainable` would hold in the base: an adapter without effect, or the frozen copy's weights."""
        if self._peft is None:
            with self.base():
                return dict(self.active.named_parameters())
        return {name: torch.zeros_like(p) if ".lora_B." in name else p for name, p in self.trainable().items()}

    def _exchange(self, weights: dict[str, Tensor]) -> None:
        """Swap trained weights with others, without copying."""
        for name, p in self.trainable().items():
            p.data, weights[name] = weights[name], p.data

    @property
    def positions(self) -> int | None:
        """Longest text the model takes, in tokens; None where its positions do not end."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def attention(self) -> str:
        """Name of the attention implementation in use."""
        return str(self.model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]

    def use_attention(self, implementation: str) -> None:
        """Run policy and reference with another attention implementation from now on.

        It must stay while a backward pass is due: gradient checkpointing runs the layers again there.
        """
        for model in self.networks():
            model.set_attn_implementation(implementation)

    @contextlib.contextmanager
    def own_attention(self) -> Generator[None, None, None]:
        """Inside, the networks run with the attention they were loaded with."""
        before = self.attention
        if before == self._own_attention:
            yield
            return
        self.use_attention(self._own_attention)
        try:
            yield
        finally:
            self.use_attention(before)

    @contextlib.contextmanager
    def as_loaded(self) -> Generator[None, None, None]:
        """Inside, the networks run as any Transformers code expects: their own attention, nothing recomputed.

        Layers that are marked for recomputation would ignore a key-value cache.
        """
        with self.own_attention(), self.without_recomputation():
            yield

    @contextlib.contextmanager
    def without_recomputation(self) -> Generator[None, None, None]:
        """Inside, gradient checkpointing is off."""
        _set_training(self._recomputed, False)
        try:
            yield
        finally:
            _set_training(self._recomputed, True)

    @contextlib.contextmanager
    def for_sampling(self, precision: torch.dtype | None) -> Generator[None, None, None]:
        """Inside, the active network is laid out for many small forward passes without gradients.

        `precision` is that of autocast, None without. In full precision every adapted layer is replaced by a plain one
        with a new, folded weight, the sum of base and update; in half precision that sum would round small updates
        away, so the side paths stay and weights are only cast once instead of at every token. Base weights are never
        written.
        """
        with self._gathered():
            head = self.active.get_output_embeddings()
            swapped: list[tuple[nn.Module, str, nn.Module]] = []
            for parent in list(self.active.modules()):
                for name, child in list(parent.named_children()):
                    other = self._fast_twin(child, precision)
                    if other is not None and child is not head:
                        swapped.append((parent, name, child))
                        setattr(parent, name, other)
            try:
                yield
            finally:
                for parent, name, child in swapped:
                    setattr(parent, name, child)

    def _fast_twin(self, layer: nn.Module, precision: torch.dtype | None) -> nn.Module | None:
        """What stands in for a layer while sampling, or None where it stays."""
        if precision is None:
            if isinstance(layer, LoraLayer) and _is_full_precision_linear(layer.get_base_layer()):
                return _folded_layer(layer, with_update=not self._in_base)
            return None
        if not _is_full_precision_linear(layer):
            return None
        return _with_weights(layer, {name: p.detach().to(precision) for name, p in layer.named_parameters()})

    def output_head(self) -> OutputHead | None:
        """The active network's output head, or None where its own logits must be used."""
        return OutputHead.of(self.active) if self.head_error is None else None

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of what is trained, as it is now; with LoRA megabytes."""
        return {name: p.detach().clone() for name, p in self.trainable().items()}

    @contextlib.contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Generator[None, None, None]:
        """Inside, what is trained has the values of a `snapshot`; no backward pass may be due."""
        held = dict(weights)
        self._exchange(held)
        try:
            yield
        finally:
            self._exchange(held)

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        return {name: p for name, p in sorted(self.model.named_parameters()) if p.requires_grad}

    @torch.no_grad()
    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every weight in which one plain network, in the base's dtype, differs from its file.

        Base and update are added in float32 or wider and rounded once; four-bit weights are those that training saw.
        Without an adapter these are all weights. Raises UserError for an adapted layer that shares its weight with
        another: the other one would change too.
        """
        if self._peft is None:
            yield from self.model.named_parameters()
            return
        holders = Counter(id(p) for _, p in self.model.named_parameters(remove_duplicate=False))
        for name, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer()
                if holders[id(base.weight)] > 1:
                    raise UserError(
                        f"{name}: has an adapter and shares its weight with another layer, so it cannot be merged; "
                        "serve the adapter beside its base instead"
                    )
                yield f"{name}.weight", _plain(base, cast(Tensor, cast(Any, layer).get_delta_weight("default")))
            elif is_nf4(layer) and not name.endswith(".base_layer"):
                yield f"{name}.weight", _plain(layer)

    def base_fingerprint(self) -> str:
        """SHA-256 over the base as it is in memory: configuration, and names, dtypes and bytes of weights."""
        return self._base_hash or _fingerprint(self._frozen or self.model)

    def save(self, folder: Path, *, writes: bool = True) -> None:
        """Write what was trained, a PEFT adapter or the whole model, with the tokenizer; same weights, same bytes.

        Where layers are spread over processes all of them call, and one `writes`. Raises UserError when the disk does
        not take it.
        """
        with self._zero.gathered() if self._zero is not None else contextlib.nullcontext():
            spread = self.sharded and self._peft is None
            whole = {k: whole_tensor(v) for k, v in self.model.state_dict().items()} if spread else None
            if not writes:
                return
            try:
                if self._peft is not None:
                    self.save_adapter(folder)
                else:
                    self.model.save_pretrained(str(folder), safe_serialization=True, state_dict=whole)
                self.tokenizer.save_pretrained(str(folder))
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"{folder}: cannot be written: {error}; mend that, and the same command goes on where it stopped"
                ) from error

    def save_adapter(self, folder: Path) -> None:
        """Write the PEFT adapter alone; same weights, same bytes. Raises ValueError for a policy without one."""
        if self._peft is None:
            raise ValueError("all weights are trained, so there is no adapter")
        self._peft.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        config_file = folder / "adapter_config.json"
        config = json.loads(config_file.read_text())
        config["target_modules"] = sorted(config["target_modules"])
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def restore(self, folder: Path) -> None:
        """Put back what `save` wrote. Raises UserError when the folder holds something else than this policy trains."""
        try:
            if self._peft is None:
                saved = AutoModelForCausalLM.from_pretrained(folder, dtype=self.model.dtype, use_safetensors=True)
                self.model.load_state_dict(saved.state_dict())
                return
            weights = load_file(folder / "adapter_model.safetensors")
            expected = set(get_peft_model_state_dict(self._peft))
            if set(weights) != expected:
                odd = sorted(set(weights) ^ expected)
                raise UserError(f"{folder}: is no adapter of this run; {len(odd)} tensors differ, such as {odd[0]}")
            set_peft_model_state_dict(self._peft, weights)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: cannot be loaded into this model: {_first_line(error)}") from error


def load_network(section: ModelSection) -> PreTrainedModel:
    """The base model as its publisher wrote it, or stored in four bits where the section says so, on the CPU.

    Raises UserError when the path holds no model, when its weights are not safetensors, or when four bits need what is
    not here.
    """
    dtype = _DTYPES[section.dtype]
    stored = {} if section.quantization == "none" else loading_options(dtype)
    with _loading(section) as options:
        config = AutoConfig.from_pretrained(section.path, **options)
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            section.path, config=config, dtype=dtype, use_safetensors=True, **stored, **options
        )
    run_exactly(network)
    return network


def precision_doubts(model: ModelSection, lora: LoraSection | None) -> list[str]:
    """A line for the user where weights are kept in a precision that training hardly moves."""
    if lora is not None or model.dtype != "bfloat16":
        return []
    return [
        "warning: all weights are trained in bfloat16, which rounds small updates away; "
        "model.dtype float32 with run.mixed_precision bf16 keeps them"
    ]


def quiet_libraries() -> None:
    """Keep loading bars and notes about the libraries' own future off the terminal; errors are raised all the same."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _add_adapter(model: PreTrainedModel, lora: LoraSection, seed: int) -> PeftModel:
    """Freeze the model and inject a fresh adapter, whose random half depends on the seed alone."""
    modules = lora.target_modules
    linear = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        use_rslora=lora.rank_stabilized,
        target_modules=modules if isinstance(modules, str) else list(modules),
        exclude_modules=_without_adapter(model) if modules == "all-linear" else None,
        fan_in_fan_out=_uses_conv1d(model),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return cast(PeftModel, get_peft_model(model, config))
        except ValueError as error:
            raise UserError(
                f"lora.target_modules: {_first_line(error)} Linear layers here: {', '.join(linear)}."
            ) from error


def _is_full_precision_linear(layer: nn.Module) -> bool:
    return _is_linear(layer) and layer.get_parameter("weight").dtype in (torch.float32, torch.float64)


def _plain(layer: nn.Module, update: Tensor | None = None) -> Tensor:
    """A layer's weight with an update, as the layer has it in a plain network; added wide, rounded once."""
    weight = plain_weight(layer) if is_nf4(layer) else layer.get_parameter("weight").detach()
    if update is not None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight = (weight.to(wide) + update.to(wide)).to(weight.dtype)
    return weight.T if is_nf4(layer) and stored_transposed(layer) else weight


@torch.no_grad()
def _folded_layer(layer: LoraLayer, *, with_update: bool) -> nn.Module:
    """The layer without side path: its base, or a copy of the base with another weight."""
    base = layer.get_base_layer()
    if not with_update:
        return base
    return _with_weights(base, {"weight": base.weight + cast(Any, layer).get_delta_weight("default")})


def _with_weights(layer: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a layer with other tensors as some of its parameters; the layer itself stays as it is."""
    twin = copy.copy(layer)
    frozen = {name: nn.Parameter(value, requires_grad=False) for name, value in weights.items()}
    twin._parameters = {**layer._parameters, **frozen}  # pyright: ignore[reportPrivateUsage]
    return twin


def _without_adapter(model: nn.Module) -> list[str] | None:
    """Names of layers that look linear and cannot carry an adapter: routers with a forward of their own, Mamba's."""
    own_forward = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward and not is_nf4(module)
    }
    recurrent = any("mamba" in type(module).__name__.lower() for module in model.modules())
    return sorted(own_forward | set(_BYPASSED_BY_MAMBA if recurrent else ())) or None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _uses_conv1d(model: nn.Module) -> bool:
    """GPT-2's linear layers store their weight transposed, which LoRA must be told."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _as_one_function(model: PreTrainedModel) -> None:
    """No chance in a forward pass, and the fast forms of what it computes."""
    _switch_dropout_off(model)
    _fuse_gelu(model)


def _switch_dropout_off(model: PreTrainedModel) -> None:
    """Zero every dropout probability, those that families keep as plain numbers or read from the configuration too."""
    for module in (*model.modules(), model.config):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _fuse_gelu(model: nn.Module) -> None:
    """Run `gelu_new` as the fused tanh GELU: the same function, one pass over memory instead of seven."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())


def _checkpoint_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Recompute layers in the backward pass; only the layers themselves are in training mode, nothing inside them."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    _set_training(layers, True)
    return layers


def _set_training(layers: Sequence[nn.Module], training: bool) -> None:
    for layer in layers:
        layer.training = training


def _fingerprint(network: PreTrainedModel) -> str:
    described = {k: v for k, v in network.config.to_dict().items() if k not in _NOT_OF_THE_FUNCTION}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        if ".lora_" in name:
            continue
        digest.update(f"{name.replace('.base_layer', '')} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    with _loading(section) as options:
        tokenizer = AutoTokenizer.from_pretrained(section.path, **options)
    if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):
        raise UserError(f"model.path: {section.path} holds no tokenizer; put tokenizer.json beside the weights")
    return tokenizer


@contextlib.contextmanager
def _loading(section: ModelSection) -> Generator[dict[str, Any], None, None]:
    """Options to load a part of the model with; inside, what Transformers raises becomes a UserError."""
    _require_model(section)
    try:
        yield {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"model.path: cannot load {section.path!r}: {_first_line(error)}") from error


def _require_model(section: ModelSection) -> None:
    """A path that looks local must be a folder with a model in it; anything else is a hub id."""
    path = Path(section.path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.path: {path} holds no config.json, so it is no model folder")
        return
    if section.path.count("/") != 1 or section.path.startswith((".", "/", "~")):
        raise UserError(
            f"model.path: {section.path!r} is neither a folder nor a hub id like owner/name; "
            "python scripts/download_model.py owner/name fetches one into model/"
        )
    if path.parent.is_dir():
        known = ", ".join(sorted(str(p.parent) for p in path.parent.glob("*/config.json"))) or "none"
        raise UserError(
            f"model.path: there is no folder {section.path!r}; models beside it: {known}; "
            "python scripts/download_model.py owner/name fetches one"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
