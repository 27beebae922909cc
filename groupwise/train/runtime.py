"""Devices, processes, precision, trackers: the only file that imports Accelerate. Knows nothing about models' insides.

Gradients are summed over processes once per step, after the last micro-batch: the step's losses are already divided by
totals over all processes, so a sum is the exact gradient, whatever each process was given.
"""

import heapq
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from groupwise.errors import UserError
from groupwise.groups import NotFinite
from groupwise.model.policy import Policy
from groupwise.model.sharding import Pass
from groupwise.model.zero import Stage, Zero, read_settings
from groupwise.sections import OptimizerSection, Sharding
from groupwise.train.lockstep import Lockstep
from groupwise.train.optimizer import Optimizer, make_optimizer

Item = TypeVar("Item")
Result = TypeVar("Result")


class Runtime:
    """Where this process runs and how it meets the others."""

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
        self._lockstep: Lockstep | None = None
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
    def processes(self) -> int:
        return self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self._accelerator.is_main_process

    @property
    def mesh(self) -> DeviceMesh | None:
        """What layers are to be spread over; None where each process holds them whole."""
        if self._sharding != "fsdp2" or self.processes == 1:
            return None
        return init_device_mesh(self.device.type, (self.processes,))

    @property
    def under_zero(self) -> bool:
        """Whether DeepSpeed holds the policy's gradients, so that no process sees its own."""
        return self._zero is not None

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

    def keep_step(self, empty: Callable[[Pass], None]) -> Callable[[Pass], None]:
        """Forward passes need all processes from now on; returns what to call before each.

        `empty` runs a pass of the given kind that has no effect.
        """
        self._lockstep = Lockstep(lambda number: int(self._largest(number)), empty)
        return self._lockstep.announce

    def _settle(self) -> None:
        """Return when no process has a forward pass left to run before all meet: what every exchange begins with.

        One with fewer passes would otherwise be in the exchange while another waits for it in a pass.
        """
        if self._lockstep is not None:
            self._lockstep.settle()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that forward passes run in."""
        return self._accelerator.autocast()

    def part(self, items: Sequence[Item], cost: Callable[[Item], float]) -> list[Item]:
        """This process's part of a list that every process holds, dealt so that all have about the same to do."""
        return [items[i] for i in self._dealt(items, cost)[self._accelerator.process_index]]

    def spread(
        self, items: Sequence[Item], work: Callable[[list[Item]], Sequence[Result]], cost: Callable[[Item], float]
    ) -> list[Result]:
        """What `work` makes of each item, in order; every process works on its part and gets everything.

        `work` takes a list and returns one result for each of its items. Raises NotFinite on all processes, with all
        groups, if one of them does.
        """
        mine = self.together(lambda: work(self.part(items, cost)))
        if self.processes == 1:
            return list(mine)
        found = dict[int, Result]()
        for places, results in zip(self._dealt(items, cost), self._of_each(mine), strict=True):
            found.update(zip(places, results, strict=True))
        return [found[place] for place in range(len(items))]

    def _dealt(self, items: Sequence[Item], cost: Callable[[Item], float]) -> list[list[int]]:
        return deal([cost(item) for item in items], self.processes)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every so many-th of a list that every process holds, for work whose length nobody knows before."""
        return list(items[self._accelerator.process_index :: self.processes])

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The parts of all processes again as one list, in the order of the list they were shared from."""
        if self.processes == 1:
            return list(items)
        parts = self._of_each(items)
        longest = max(len(part) for part in parts)
        return [part[i] for i in range(longest) for part in parts if i < len(part)]

    def _of_each(self, items: Sequence[Item]) -> list[list[Item]]:
        """Every process's list, in their order."""
        self._settle()
        return gather_object([list(items)])

    def exchange(self, parcels: Sequence[bytes]) -> list[bytes]:
        """One parcel for every process goes straight to it; returns those for this one, in the order of senders."""
        if self.processes == 1:
            return list(parcels)
        self._settle()
        sizes = torch.tensor([len(parcel) for parcel in parcels], device=self.device)
        coming = torch.empty_like(sizes)
        torch.distributed.all_to_all_single(coming, sizes)
        content = torch.frombuffer(bytearray(b"".join(parcels)) or bytearray(1), dtype=torch.uint8)[: int(sizes.sum())]
        received = torch.empty(int(coming.sum()), dtype=torch.uint8, device=self.device)
        torch.distributed.all_to_all_single(received, content.to(self.device), coming.tolist(), sizes.tolist())
        return [part.numpy().tobytes() for part in received.cpu().split(coming.tolist())]

    def to_main(self, parcel: bytes) -> list[bytes]:
        """On the main process what every process hands in, in their order; nothing elsewhere."""
        received = self.exchange([parcel, *[b""] * (self.processes - 1)])
        return received if self.is_main else []

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.processes == 1:
            return values
        self._settle()
        return cast(Tensor, self._accelerator.reduce(values, reduction="sum"))

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum over all processes of each of some numbers."""
        if self.processes == 1:
            return list(numbers)
        return self.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def most(self, number: float) -> float:
        """The largest of all processes' numbers."""
        if self.processes == 1:
            return number
        self._settle()
        return self._largest(number)

    def _largest(self, number: float) -> float:
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return value.item()

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process asks at the same place."""
        if self.processes == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def together(self, deed: Callable[[], Result]) -> Result:
        """The result of this process's share; raises NotFinite on all processes, with all groups, if one of them does.

        The others would otherwise wait for ever for a process that is gone.
        """
        result, faults = None, list[NotFinite]()
        try:
            result = deed()
        except NotFinite as fault:
            faults.append(fault)
        if self.any(bool(faults)):
            what = self.gather([fault.what for fault in faults])[0]
            raise NotFinite(what, self.gather([group for fault in faults for group in fault.groups]))
        return cast(Result, result)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the summed gradient; a parameter that got none counts as zero."""
        if self.processes == 1 or self.under_zero:
            return
        trained = [p for p in parameters if not isinstance(p, DTensor)]  # the others' are summed as they come
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        flat = self.sum(torch.cat([part.flatten() for part in parts]))
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p).clone()

    def lost_contact(self, error: BaseException) -> bool:
        """Whether an error is that of an exchange with another process that is not there any more."""
        if self.processes == 1 or not isinstance(error, RuntimeError):
            return False
        backends = isinstance(error, torch.distributed.DistBackendError | torch.distributed.DistNetworkError)
        return backends or "gloo" in str(error).lower()

    def wait(self) -> None:
        """Return when all processes are here."""
        self._settle()
        self._accelerator.wait_for_everyone()

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
        """Flush the trackers."""
        if self._tracks:
            self._accelerator.end_training()


def deal(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Places of a list dealt into parts of about the same cost: the largest first, each to who has least so far.

    No part costs more than 4/3 of the best there is (Graham 1969). Depends on costs alone, so all processes agree.

    >>> deal([5, 1, 1, 3, 1], parts=2)
    [[0, 4], [1, 2, 3]]
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        load, part = heapq.heappop(loads)
        dealt[part].append(place)
        heapq.heappush(loads, (load + costs[place], part))
    return [sorted(own) for own in dealt]


def tracked_names(tracker: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under names that the tracker takes: MLflow refuses `@` and whatever a reward's file may be called.

    >>> tracked_names("mlflow", {"eval/pass@1": 0.5}), tracked_names("tensorboard", {"eval/pass@1": 0.5})
    ({'eval/pass_at_1': 0.5}, {'eval/pass@1': 0.5})
    """
    if tracker != "mlflow":
        return dict(metrics)
    return {re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_")): value for name, value in metrics.items()}
