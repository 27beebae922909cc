"""How long a run will take: the cost model, brought to this machine's speed by what a trial took.

A trial is small and the run is not, so the trial's seconds are not multiplied but divided by what the model says of the
trial; the model then speaks of the run. Of several processes the busiest counts. What nobody measured, a network and
foreign servers, is said to be assumed. Knows neither method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Self

from groupwise.cost.machine import Machine, assumed_link, prior
from groupwise.cost.network import adapter_bytes, rollout_bytes, rollout_exchanges, step_bytes, step_exchanges
from groupwise.cost.processes import dealt, in_turn, learning_hands, most_passes, reading_hands
from groupwise.cost.shapes import GroupShape, ModelShape
from groupwise.cost.work import Work, learn, sampling, served
from groupwise.observe.progress import duration
from groupwise.preflight.report import Report
from groupwise.sections import Sharding

SERVER_ROWS = 256
"""Completions that a server is taken to write at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A model on this machine: seconds of passes over packed rows, of its own sampling, and of servers like it."""

    shape: ModelShape
    device: str
    rows: Machine
    drawing: Machine
    serving: Machine
    tokens_per_forward: int
    rows_at_once: int
    recompute: bool
    processes: int
    sharding: Sharding

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
        processes: int,
        sharding: Sharding,
    ) -> Self:
        """`learned` is one micro-batch and the seconds of its forward and backward pass, `drawn` a small rollout.

        Both are the busiest process's part. All processes tried at the same time, so what they lose by sharing a
        machine is in the seconds.
        """
        work = sampling(shape, drawn[0], rows_at_once=rows_at_once)
        slower = drawn[1] / prior("sampling", device).seconds(work)
        return cls(
            shape=shape,
            device=device,
            rows=prior("rows", device).calibrated(learn(shape, learned[0], recompute=recompute), learned[1]),
            drawing=prior("sampling", device).slower(slower),
            serving=prior("serving", device).slower(slower),
            tokens_per_forward=tokens_per_forward,
            rows_at_once=rows_at_once,
            recompute=recompute,
            processes=processes,
            sharding=sharding,
        )

    def learning(self, groups: Sequence[GroupShape], *, updates: float = 1) -> float:
        """Seconds of learning from these groups once, in that many optimizer steps."""
        hands = learning_hands(
            self.shape,
            groups,
            processes=self.processes,
            sharding=self.sharding,
            tokens_per_forward=self.tokens_per_forward,
            recompute=self.recompute,
            updates=updates,
        )
        return self._busiest(hands)

    def reading(self, groups: Sequence[GroupShape]) -> float:
        """Seconds of one pass without gradients."""
        hands = reading_hands(self.shape, groups, processes=self.processes, tokens_per_forward=self.tokens_per_forward)
        return self._busiest(hands)

    def sampling(self, groups: Sequence[GroupShape]) -> float:
        """Seconds of a rollout of these sizes by this program."""
        hands = in_turn(groups, self.processes)
        return max(self.drawing.seconds(sampling(self.shape, hand, rows_at_once=self.rows_at_once)) for hand in hands)

    def served(self, groups: Sequence[GroupShape], servers: int) -> float:
        """Seconds of a rollout by so many servers, each a vLLM on hardware like this."""
        hands = in_turn(groups, servers)
        return max(self.serving.seconds(served(self.shape, hand, rows_at_once=SERVER_ROWS)) for hand in hands if hand)

    def _busiest(self, hands: Sequence[Sequence[Work]]) -> float:
        return self.rows.busiest(hands, lockstep=self.sharding in ("fsdp2", "zero3"))


def busiest(groups: Sequence[GroupShape], processes: int) -> list[GroupShape]:
    """The part of who has most tokens, where groups are dealt to so many processes."""
    return max(dealt(groups, processes), key=lambda hand: sum(group.row_tokens for group in hand))


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
    report: Report,
    *,
    learned: Sequence[GroupShape],
    read: Sequence[GroupShape] = (),
    gathers: int = 0,
    sent: Sequence[GroupShape] = (),
    fields: int = 2,
) -> None:
    """What goes over the network in a step, and what is assumed about its time; nothing where nobody else is.

    The step learns from some groups, reads some without gradients, gathers all weights so many times for sampling, and
    some groups, with so many numbers per token, go from who sampled them to who learns from them.
    """
    processes, sharding = speed.processes, speed.sharding
    if processes == 1:
        return
    passes = [
        most_passes(groups, processes=processes, tokens_per_forward=speed.tokens_per_forward)
        for groups in (learned, read)
    ]
    size = step_bytes(
        speed.shape, processes=processes, sharding=sharding, learning=passes[0], reading=passes[1], rollouts=gathers
    )
    way = max(rollout_bytes(hand, processes=processes, fields=fields) for hand in in_turn(sent, processes))
    line = f"each of {processes} processes sends {(size + way) / 1e6:,.1f} MB in a step (run.sharding {sharding})"
    if sent:
        line += f", {way / 1e6:,.2g} of it answers on their way to who learns from them"
    if sharding == "zero2" or sharding == "zero3":
        report.ok(f"{line}; its time is left out above, the network and DeepSpeed's exchanges being unknown")
        return
    met = step_exchanges(
        speed.shape, processes=processes, sharding=sharding, learning=passes[0], reading=passes[1], rollouts=gathers
    )
    met += rollout_exchanges(processes=processes, sharding=sharding) if sent else 0
    link = assumed_link(speed.device)
    seconds = link.s_per_byte * (size + way) + link.s_per_exchange * met
    report.ok(
        f"{line}, in {met} exchanges; their time is left out above, for this network is unknown: over {link.name}, "
        f"it would be {seconds:.2g} s a step"
    )


def tell_servers(
    speed: Speed, report: Report, *, groups: Sequence[GroupShape], servers: int, at_once: int, answer_limit: float
) -> None:
    """What servers are asked and load, and what is assumed about their speed.

    `at_once` groups are asked of a server at a time, at most, by each process; `answer_limit` in seconds.
    """
    each = -(-len(groups) // servers)
    report.ok(
        f"each update is a version of {adapter_bytes(speed.shape) / 1e6:,.1f} MB, which {servers} servers load; each "
        f"answers {each} of the {len(groups)} groups of a rollout"
    )
    report.warning(
        "time of rollouts takes each server for a vLLM on hardware like this that writes "
        f"{SERVER_ROWS} completions at a time; nothing was timed there"
    )
    wait = speed.served(groups, servers) * min(1.0, at_once * speed.processes / each)
    if wait > answer_limit:
        report.warning(
            f"a group would wait {duration(wait)} for its answers, for that many are asked at once, and is asked "
            f"elsewhere after {answer_limit:g} s: raise sampling.answer_limit, or lower sampling.groups_per_server"
        )
