"""Devices, precision, gradients of several processes, trackers: the only file that imports Accelerate.

Knows nothing about models' insides; how processes meet is in exchange.py.

Gradients are summed over processes once per step, after the last micro-batch: the step's losses are already divided by
totals over all processes, so a sum is the exact gradient, whatever each process was given.
"""

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from groupwise.errors import UserError
from groupwise.model.policy import Policy
from groupwise.model.zero import Stage, Zero, read_settings
from groupwise.sections import OptimizerSection, Sharding
from groupwise.train.exchange import Exchange
from groupwise.train.optimizer import Optimizer, make_optimizer

_BUCKET = 64 * 2**20  # bytes of gradients that are summed at once: what that takes besides them


class Runtime(Exchange):
    """Where this process runs, in which precision, and how it meets the others."""

    def __init__(
        self,
        *,
        mixed_precision: str = "no",
        trackers: Sequence[str] = (),
        folder: Path | None = None,
        seed: int | None = None,
        sharding: Sharding = "none",
        zero_settings: Path | None = None,
    ) -> None:
        """`sharding` spreads policies that are loaded onto `mesh`, or handed to `spread_policy`; one process does not.

        `seed` sets the global generators: nothing of ours draws from them, but a model may."""
        if seed is not None:
            set_seed(seed)
        missing = [name for name in trackers if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"run.trackers: {', '.join(missing)} is not installed; pip install {' '.join(missing)}")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else processes that torchrun starts on CPUs are not joined
            mixed_precision=mixed_precision,
            log_with=list(trackers) or None,
            project_dir=str(folder) if folder is not None else None,
        )
        super().__init__(self._accelerator.num_processes, self._accelerator.process_index)
        self._sharding = sharding
        self._zero_settings = zero_settings
        self._zero: Zero | None = None
        self._tracks = bool(trackers)
        self._name = folder.name if folder is not None else "run"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and self._accelerator.num_processes == 1:
            raise UserError(
                "several processes were started, but none knows of the others; start them with torchrun or "
                "`accelerate launch`"
            )

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    @property
    def mesh(self) -> DeviceMesh | None:
        """What layers are to be spread over; None where each process holds them whole."""
        if self._sharding != "fsdp2" or self.processes == 1:
            return None
        return init_device_mesh(self.device.type, (self.processes,))

    def spread_policy(self, policy: Policy, section: OptimizerSection) -> None:
        """Hand the policy to ZeRO where that was asked for, with the optimizer of this section."""
        stages: dict[str, Stage] = {"zero2": 2, "zero3": 3}
        stage = stages.get(self._sharding)
        if stage is None or self.processes == 1:
            return
        settings = read_settings(self._zero_settings, stage)
        parameters = list(policy.trainable().values())

        def spread(network: PreTrainedModel) -> Zero:
            return Zero(
                network,
                parameters,
                make_optimizer(section, parameters),
                stage=stage,
                settings=settings,
                max_grad_norm=section.max_grad_norm,
                processes=self.processes,
            )

        self._zero = policy.spread_by(spread)

    def optimizer(self, section: OptimizerSection, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """What moves the policy's parameters."""
        return self._zero or make_optimizer(section, parameters)

    def expect_backward(self, passes: int) -> None:
        """This process has so many backward passes until the next step."""
        if self._zero is not None:
            self._zero.expect(max(1, int(self.most(passes))))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that forward passes run in."""
        return self._accelerator.autocast()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the summed gradient; a parameter that got none counts as zero."""
        if self.processes == 1 or self._zero is not None:
            return
        trained = [p for p in parameters if not isinstance(p, DTensor)]  # the others' are summed as they come
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in buckets([p.grad for p in trained if p.grad is not None], _BUCKET):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            torch.distributed.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def start_trackers(self, project: str, settings: Mapping[str, Any]) -> None:
        """Open the trackers that were asked for; without any this does nothing."""
        if self._tracks:
            named = {"mlflow": {"run_name": self._name}, "wandb": {"name": self._name}, "trackio": {"name": self._name}}
            self._accelerator.init_trackers(project, config=dict(settings), init_kwargs=named)

    def track(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a step's metrics to the trackers."""
        for tracker in self._accelerator.trackers if self._tracks else ():
            tracker.log(tracked_names(tracker.name, metrics), step=step)

    def close(self) -> None:
        """All went well: flush the trackers, and take leave of the other processes when the program ends."""
        if self._tracks:
            self._accelerator.end_training()
        self.part_at_exit()


def buckets(tensors: Iterable[Tensor], most_bytes: int) -> list[list[Tensor]]:
    """Tensors one after the other in lists of one type and at most so many bytes; a larger one is alone.

    >>> [len(bucket) for bucket in buckets([torch.zeros(2), torch.zeros(2), torch.zeros(2).double()], 16)]
    [2, 1]
    """
    found: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if not found or size > room or tensor.dtype != found[-1][0].dtype:
            found.append([])
            room = most_bytes
        found[-1].append(tensor)
        room -= size
    return found


def tracked_names(tracker: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under names that the tracker takes: MLflow refuses `@` and whatever a reward's file may be called.

    >>> tracked_names("mlflow", {"eval/pass@1": 0.5}), tracked_names("tensorboard", {"eval/pass@1": 0.5})
    ({'eval/pass_at_1': 0.5}, {'eval/pass@1': 0.5})
    """
    if tracker != "mlflow":
        return dict(metrics)
    return {re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_")): value for name, value in metrics.items()}
