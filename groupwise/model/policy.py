"""The policy: a causal language model, what of it is trained, and the reference that it is held to.

The base is the network that training started from (`base.py`); the reference is the base until a schedule moves it
(`reference.py`). Dropout is off everywhere. Knows nothing about groups, losses or sampling.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from groupwise.errors import UserError, first_line
from groupwise.model.adapter import add_adapter, restore_adapter, save_adapter
from groupwise.model.base import AdapterOff, Base, FrozenCopy, LoadedAgain
from groupwise.model.head import OutputHead, head_error
from groupwise.model.heap import return_what_is_freed
from groupwise.model.loading import load_network, load_tokenizer
from groupwise.model.merging import merged_weights
from groupwise.model.nf4 import is_nf4
from groupwise.model.preparing import as_one_function, recompute_layers, set_training
from groupwise.model.reference import moved, save_reference, saved_reference, without_effect
from groupwise.model.sampling_layers import fast_layers
from groupwise.model.sharding import gathered, shard, whole_tensor
from groupwise.model.zero import Zero
from groupwise.sections import LoraSection, ModelSection


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
        as_one_function(model)
        self._adapter: PeftModel | None = None
        self._base: Base
        if lora is None:
            self._base = FrozenCopy(model) if base_file is None else LoadedAgain(model, base_file)
            model.requires_grad_(True)
        else:
            self._adapter = add_adapter(model, lora, seed)
            self._base = AdapterOff(model, self._adapter)
        self._in_base = False
        self._moved: dict[str, Tensor] | None = None  # trained weights of a reference that left the base
        self._in_moved = False
        self.sharded = False  # whether weights, or what is learned of them, are spread over processes
        self._zero: Zero | None = None
        self._base_hash: str | None = None  # taken before weights were spread
        self._own_attention = self.attention
        model.eval()
        self.head_error = head_error(model)
        self._recomputed: list[nn.Module] = recompute_layers(model) if gradient_checkpointing else []
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
        tokenizer = load_tokenizer(section)
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

    # --- what processes hold of it

    def is_spread(self, network: PreTrainedModel) -> bool:
        """Whether a forward pass of this network needs all processes; a frozen copy stays whole under ZeRO."""
        return self.sharded and (self._zero is None or network is self.model)

    @property
    def gradients_spread(self) -> bool:
        """Whether no process sees the gradient of its own groups: it is summed over all as it comes."""
        return self.sharded and (self._zero is not None or self._adapter is None)

    # --- which network runs

    @property
    def active(self) -> PreTrainedModel:
        """The network that a forward pass should run now."""
        own = self._base.own
        return own if self._in_base and own is not None else self.model

    def networks(self) -> list[PreTrainedModel]:
        """What is held in memory: the model, and a base that is a network of its own."""
        own = self._base.own
        return [self.model] if own is None else [self.model, own]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def positions(self) -> int | None:
        """Longest text the model takes, in tokens; None where its positions do not end."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @contextlib.contextmanager
    def base(self) -> Generator[None, None, None]:
        """Inside, the active network is the one that training started from; may be nested.

        Raises UserError where it has to be loaded again and is no longer what it was.
        """
        if self._in_base:
            yield
            return
        with self._base.opened():
            self._in_base = True
            try:
                yield
            finally:
                self._in_base = False

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
        with self.holding(self._moved):
            self._in_moved = True
            try:
                yield
            finally:
                self._in_moved = False

    # --- where the reference goes

    def move_reference(self, mix: float) -> None:
        """Trained weights of the reference become mix * policy + (1 - mix) * reference, with 0 < mix <= 1.

        mix 1 makes the reference a copy of the policy, as each iteration of Algorithm 1 of the GRPO paper does; less
        is the soft update of TR-DPO (arXiv 2404.09656). With LoRA the two factors of an update are averaged, not their
        product. Costs memory for one more set of trained weights.
        """
        self._moved = moved(self._moved or self._base_weights(), self.trainable(), mix)

    def _base_weights(self) -> Mapping[str, Tensor]:
        """What `trainable` would hold in the base."""
        if self._adapter is not None:
            return without_effect(self.trainable())
        with self.base():
            return dict(self.active.named_parameters())

    @property
    def moved_reference(self) -> Mapping[str, Tensor] | None:
        """Trained weights of a reference that left the base; to be set again to what it once was."""
        return self._moved

    @moved_reference.setter
    def moved_reference(self, weights: Mapping[str, Tensor] | None) -> None:
        self._moved = None if weights is None else dict(weights)

    def save_reference(self, folder: Path) -> None:
        """Write where the reference was moved to; nothing while it is the base."""
        if self._moved is not None:
            save_reference(self._moved, folder)

    def restore_reference(self, folder: Path) -> None:
        """Put back what `save_reference` wrote."""
        self._moved = saved_reference(folder, self.device)

    def base_fingerprint(self) -> str:
        """SHA-256 over the base as it is in memory: configuration, and names, dtypes and bytes of weights."""
        return self._base_hash or self._base.fingerprint()

    # --- how its layers run

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

    @property
    def recomputes(self) -> bool:
        """Whether layers run again in the backward pass (gradient checkpointing)."""
        return bool(self._recomputed)

    @contextlib.contextmanager
    def without_recomputation(self) -> Generator[None, None, None]:
        """Inside, gradient checkpointing is off."""
        set_training(self._recomputed, False)
        try:
            yield
        finally:
            set_training(self._recomputed, True)

    @contextlib.contextmanager
    def for_sampling(self, precision: torch.dtype | None) -> Generator[None, None, None]:
        """Inside, the active network is laid out for many small forward passes without gradients: see `fast_layers`.

        `precision` is that of autocast, None without.
        """
        with self._gathered(), fast_layers(self.active, precision, with_update=not self._in_base):
            yield

    def output_head(self) -> OutputHead | None:
        """The active network's output head, or None where its own logits must be used."""
        return OutputHead.of(self.active) if self.head_error is None else None

    # --- what is trained

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        return {name: p for name, p in sorted(self.model.named_parameters()) if p.requires_grad}

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

    def _exchange(self, weights: dict[str, Tensor]) -> None:
        """Swap trained weights with others, without copying."""
        for name, p in self.trainable().items():
            p.data, weights[name] = weights[name], p.data

    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every weight in which one plain network differs from the base's file: see `merging.py`.

        Without an adapter these are all weights. Raises UserError for an adapter that cannot be merged.
        """
        return self.model.named_parameters() if self._adapter is None else merged_weights(self.model)

    # --- on disk

    def save(self, folder: Path, *, writes: bool = True) -> None:
        """Write what was trained, a PEFT adapter or the whole model, with the tokenizer; same weights, same bytes.

        Where layers are spread over processes all of them call, and one `writes`. Raises UserError when the disk does
        not take it.
        """
        with self._zero.gathered() if self._zero is not None else contextlib.nullcontext():
            spread = self.sharded and self._adapter is None
            whole = {k: whole_tensor(v) for k, v in self.model.state_dict().items()} if spread else None
            if not writes:
                return
            try:
                if self._adapter is not None:
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
        if self._adapter is None:
            raise ValueError("all weights are trained, so there is no adapter")
        save_adapter(self._adapter, folder)

    def restore(self, folder: Path) -> None:
        """Put back what `save` wrote. Raises UserError when the folder holds something else than this policy trains."""
        try:
            if self._adapter is not None:
                restore_adapter(self._adapter, folder)
                return
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=self.model.dtype, use_safetensors=True)
            self.model.load_state_dict(saved.state_dict())
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: cannot be loaded into this model: {first_line(error)}") from error

    # --- who holds the weights

    def spread_by(self, spread: Callable[[PreTrainedModel], Zero]) -> Zero:
        """Let ZeRO hold the model from now on; a frozen copy stays whole."""
        self._base_hash = self.base_fingerprint()
        self._zero = spread(self.model)
        self.sharded = True
        return self._zero

    def _shard(self, mesh: DeviceMesh, device: torch.device | str) -> None:
        self._base_hash = self.base_fingerprint()
        for network in self.networks():
            adapter = () if self._adapter is None else self.trainable().values()
            shard(network, mesh, whole=adapter)
            cast(nn.Module, network).to(device)
        self.sharded = True

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
