"""How long a run will take: the cost model, brought to this machine's speed by what a trial took.

A trial is small and the run is not, so the trial's seconds are not multiplied but divided by what the model says of the
trial; the model then speaks of the run. Knows neither method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from groupwise.cost.machine import Machine, prior
from groupwise.cost.network import adapter_bytes, step_bytes
from groupwise.cost.shapes import GroupShape, ModelShape, micro_batches
from groupwise.cost.work import learn, reading, sampling, total, update
from groupwise.preflight.report import Report
from groupwise.sections import Sharding


@dataclass(frozen=True, slots=True)
class Speed:
    """A model on this machine: seconds of its passes over packed rows, and of its sampling."""

    shape: ModelShape
    rows: Machine
    drawing: Machine
    tokens_per_forward: int
    rows_at_once: int
    recompute: bool

    @classmethod
    def of_trial(
        cls,
        shape: ModelShape,
        device: str,
        *,
        learned: tuple[Sequence[GroupShape], float],
        drawn: tuple[Sequence[GroupShape], float],
        tokens_per_forward: int,
        rows_at_once: int,
        recompute: bool,
    ) -> "Speed":
        """`learned` is one micro-batch and the seconds of its forward and backward pass, `drawn` a small rollout."""
        rows, drawing = prior("rows", device), prior("sampling", device)
        return cls(
            shape,
            rows.calibrated(learn(shape, learned[0], recompute=recompute), learned[1]),
            drawing.calibrated(sampling(shape, drawn[0], rows_at_once=rows_at_once), drawn[1]),
            tokens_per_forward,
            rows_at_once,
            recompute,
        )

    def learning(self, groups: Sequence[GroupShape], *, updates: float = 1) -> float:
        """Seconds of learning from these groups once, in that many optimizer steps."""
        parts = micro_batches(groups, self.tokens_per_forward)
        passes = total(learn(self.shape, part, recompute=self.recompute) for part in parts)
        return self.rows.seconds(passes + update(self.shape) * updates)

    def reading(self, groups: Sequence[GroupShape]) -> float:
        """Seconds of one pass without gradients."""
        return self.rows.seconds(reading(self.shape, groups, tokens_per_forward=self.tokens_per_forward))

    def sampling(self, groups: Sequence[GroupShape]) -> float:
        """Seconds of a rollout of these sizes."""
        work = sampling(self.shape, groups, rows_at_once=self.rows_at_once)
        return self.drawing.seconds(work)


def repeated(groups: Sequence[GroupShape], count: int, *, n: int | None = None) -> list[GroupShape]:
    """That many groups of the sizes of a few, each of `n` completions where that is another number.

    >>> repeated([GroupShape(3, (5, 7))], 2, n=3)
    [GroupShape(prompt=3, completions=(5, 7, 5)), GroupShape(prompt=3, completions=(5, 7, 5))]
    """
    found = islice(cycle(groups), count)
    if n is None:
        return list(found)
    return [GroupShape(group.prompt, tuple(islice(cycle(group.completions), n))) for group in found]


def tell_network(
    speed: Speed,
    sharding: Sharding,
    report: Report,
    *,
    processes: int,
    steps: tuple[Sequence[GroupShape], Sequence[GroupShape]],
    gathers: int = 0,
    servers: int = 0,
) -> None:
    """What goes over the network in a step that learns from the first and reads the second; nothing where nobody is."""
    passes = [-(-len(micro_batches(part, speed.tokens_per_forward)) // processes) for part in steps]
    sent = step_bytes(
        speed.shape, processes=processes, sharding=sharding, learning=passes[0], reading=passes[1], rollouts=gathers
    )
    if sent:
        report.ok(f"each of {processes} processes sends {sent / 1e6:,.1f} MB in a step (run.sharding {sharding})")
    if servers:
        size = adapter_bytes(speed.shape) / 1e6
        report.ok(f"each update is a version of {size:,.1f} MB, which {servers} servers load")
