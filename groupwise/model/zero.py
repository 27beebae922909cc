"""ZeRO as DeepSpeed does it: gradients and optimizer state spread over processes (stage 2), and weights too (stage 3).

With stage 3 embeddings and the output head stay whole everywhere, as with FSDP2, so that log-probs are computed as
ever. Gradients are summed, not averaged. Knows nothing about losses or data; the only file that knows DeepSpeed.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from groupwise.errors import UserError

Result = TypeVar("Result")
Stage = Literal[2, 3]


class Zero:
    """A network under ZeRO, and its optimizer as schedules and checkpoints see it.

    Every process calls everything, in the same order. `param_groups` are those of the optimizer that was handed in.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        stage: Stage,
        settings: Mapping[str, Any],
        max_grad_norm: float | None,
        processes: int,
    ) -> None:
        """`settings` are DeepSpeed's own, its section `zero_optimization`; `parameters` what `optimizer` moves."""
        library = _library()
        self.stage = stage
        self._parameters = list(parameters)
        self._adam_or_other = optimizer
        self._processes = processes
        self._left = 1
        self._pass = _Pass(network)
        self._engine, self._inner, *_ = library.initialize(
            model=self._pass,
            optimizer=optimizer,
            model_parameters=self._parameters,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": max_grad_norm or 0.0,
                "steps_per_print": 2**40,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": {**settings, "stage": stage},
            },
        )
        layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
        inside = {id(p) for layer in layers for p in layer.parameters()}
        spread = stage == 3
        self._inside = [p for p in network.parameters() if spread and id(p) in inside]
        self._outside: list[Any] = [p for p in network.parameters() if spread and id(p) not in inside]
        for p in self._outside:
            p.is_external_param = True  # a module that is done with them does not give them away
        self._gather_outside()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._adam_or_other.param_groups

    def run(self, work: Callable[[], Result]) -> Result:
        """A forward pass of the network, through DeepSpeed where a backward pass follows."""
        return (self._engine if torch.is_grad_enabled() else self._pass)(work)

    def expect(self, passes: int) -> None:
        """As many backward passes follow until the next step, on every process."""
        self._left = passes

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this process's part of a sum over all of them."""
        self._engine.set_gradient_accumulation_boundary(self._left == 1)
        self._left -= 1
        self._engine.backward(loss * self._processes, scale_wrt_gas=False)  # which takes the mean over processes

    def clipped_step(self) -> Tensor:
        """Move along the clipped gradient; its norm before. Nothing is moved where that is not finite."""
        self._engine.step()
        self._gather_outside()
        norm = torch.as_tensor(float("nan") if self._inner.overflow else self._inner._global_grad_norm)
        return norm.to(torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """As that of a PyTorch optimizer that holds all of it."""
        read = importlib.import_module("deepspeed.utils").safe_get_full_optimizer_state
        known: dict[str, Any] = next((dict(own) for own in self._adam_or_other.state.values() if own), {})
        spread = [name for name, value in known.items() if isinstance(value, Tensor) and value.ndim]
        once = [name for name in known if name not in spread]
        state = {
            index: {**{name: read(p, name) for name in spread}, **{name: known[name].clone() for name in once}}
            for index, p in enumerate(self._parameters)
            if known
        }
        return {"state": state, "param_groups": []}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        write = importlib.import_module("deepspeed.utils").safe_set_full_optimizer_state
        state: Mapping[int, Mapping[str, Tensor]] = state_dict["state"]
        known = next(iter(state.values()), {})
        inner = self._inner
        flats = inner.single_partition_of_fp32_groups if self.stage == 2 else inner.fp32_partitioned_groups_flat
        for flat in flats:
            self._adam_or_other.state[flat] = {
                name: torch.zeros_like(flat) if value.ndim else value.clone() for name, value in known.items()
            }
        if self.stage == 2:
            inner._lazy_init_hp_params_optimizer_state()
        for index, own in state.items():
            for name, value in own.items():
                if value.ndim:
                    write(self._parameters[index], value.to(self._engine.device), name)

    @contextlib.contextmanager
    def gathered(self) -> Generator[None, None, None]:
        """Inside, every process holds all weights, and forward passes need nobody else."""
        if self.stage == 2:
            yield
            return
        hooks = self._inner.parameter_offload
        hooks._remove_module_hooks()
        hooks.forward_hooks.clear()
        hooks.backward_hooks.clear()
        try:
            with _library().zero.GatheredParameters(self._inside):
                yield
        finally:
            hooks.setup_zero_stage3_hooks()

    def _gather_outside(self) -> None:
        if self._outside:
            self._outside[0].all_gather(self._outside)


class _Pass(nn.Module):
    """Runs whatever it is called with: DeepSpeed sees a forward pass of one module around the network."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = cast(nn.Module, network)

    def forward(self, work: Callable[[], Result]) -> Result:
        return work()


def read_settings(file: Path | None, stage: Stage) -> dict[str, Any]:
    """DeepSpeed's section `zero_optimization` from a JSON file; nothing without one.

    Raises UserError for a file that is none, for another stage, and for settings that a run's own keys decide.
    """
    if file is None:
        return {}
    try:
        found: Any = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"run.zero_settings: {file} cannot be read as JSON: {error}") from error
    section: Any = found.get("zero_optimization") if isinstance(found, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"run.zero_settings: {file} has no section zero_optimization; configs/launch/zero3.json has")
    foreign = sorted(set(cast(dict[str, Any], found)) - {"zero_optimization"})
    if foreign:
        raise UserError(
            f"run.zero_settings: {file}: {', '.join(foreign)}: batch, precision, optimizer and clipping are keys of "
            "the run's own configuration; leave zero_optimization alone in the file"
        )
    settings = cast(dict[str, Any], section)
    if settings.get("stage", stage) != stage:
        raise UserError(f"run.zero_settings: {file} is for stage {settings['stage']}, and run.sharding is zero{stage}")
    return settings


def whole(value: Tensor) -> Tensor | None:
    """All of a parameter that ZeRO spreads, None for any other tensor."""
    if not hasattr(value, "ds_id"):
        return None
    if cast(Any, value).is_external_param:
        return value.detach()
    with _library().zero.GatheredParameters([value]):
        return value.detach().clone()


def assign(p: nn.Parameter, value: Tensor) -> bool:
    """Give a parameter under ZeRO another value, its copy in the optimizer too; whether it is one."""
    spread: Any = p
    if not hasattr(p, "ds_id") and not hasattr(p, "_hp_mapping"):
        return False
    there = value.to(p.device)
    if hasattr(p, "ds_id"):
        with _library().zero.GatheredParameters([p], modifier_rank=0):
            p.data.copy_(there)
        if spread.is_external_param:
            spread.all_gather([p])
    else:
        p.data.copy_(there)
    importlib.import_module("deepspeed.utils").safe_set_full_fp32_param(p, there)
    return True


def _library() -> Any:
    """DeepSpeed, quiet, and without compiling anything on a CPU."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "run.sharding: DeepSpeed is not installed; pip install 'groupwise[deepspeed]', or set run.sharding to "
            "fsdp2, which needs no more than PyTorch"
        )
    library = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.accelerator.is_available():
        library.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled for minutes
    return library
