"""Signs that a run goes wrong, found in its metrics: one plain line each, with the figure, a likely cause and a remedy.

An alarm is a function of the rows logged so far and of nothing else, so a continued run raises the same ones. Knows
nothing about models, and nothing about a method but the names of its metrics.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from groupwise.sections import AlarmsSection

_RECENT = 5  # rows that a level is the mean of
_SPIKE_MEMORY = 50  # rows that a spike is compared with
_SPIKE_HISTORY = 20  # rows needed before anything can be a spike; warm-up lies before


@dataclass(frozen=True, slots=True)
class Alarm:
    """`figure` is what was found, in the unit that `text` names."""

    step: int
    name: str
    figure: float
    text: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Watched:
    """Which metrics of a method play which part; None where it has none.

    `held_out` is a figure on held-out data that should rise, logged with `/low` and `/high`, `trained` what it should
    rise with; `beta` turns implicit rewards into log-ratios.
    """

    spikes: tuple[str, ...]
    held_out: str
    trained: str
    beta: float | None = None


@dataclass(frozen=True, slots=True)
class _Finding:
    figure: float
    text: str


Rows = Sequence[Mapping[str, float]]


class Alarms:
    """Looks at each logged row once, in order, and returns the alarms that it raises.

    The same alarm is not raised again before `quiet_steps` rows have passed.

    >>> alarms = Alarms(AlarmsSection(kl=0.5), Watched(spikes=(), held_out="eval/pass@1", trained="reward"))
    >>> for step in range(1, 7):
    ...     for alarm in alarms.look({"step": step, "kl": 0.3 * step}):
    ...         print(alarm.step, alarm.name, round(alarm.figure, 2))
    5 kl 0.9
    """

    def __init__(self, section: AlarmsSection, watched: Watched) -> None:
        self.raised: list[Alarm] = []
        self._section = section
        self._watched = watched
        self._rows: list[Mapping[str, float]] = []
        self._columns: dict[str, list[float]] = {}  # the same by name, so that a long run is not gone through each step
        self._quiet_until: dict[str, int] = {}
        self._rules: dict[str, Callable[[], _Finding | None]] = {
            **{f"spike/{name}": lambda name=name: self._spike(name) for name in watched.spikes},
            "entropy": self._entropy,
            "kl": self._kl,
            "length": self._length,
            "chosen_falls": self._chosen_falls,
            "no_signal": self._no_signal,
            "saturated": self._saturated,
            "sampler_gap": self._sampler_gap,
            "held_out_falls": self._held_out_falls,
        }

    def look(self, row: Mapping[str, float]) -> list[Alarm]:
        """The alarms that this row raises; `row` has `step`, counted from 1."""
        self._rows.append(row)
        for name, value in row.items():
            self._columns.setdefault(name, []).append(value)
        found: list[Alarm] = []
        for name, rule in self._rules.items():
            if len(self._rows) <= self._quiet_until.get(name, 0):
                continue
            finding = rule()
            if finding is not None:
                found.append(Alarm(int(row["step"]), name, finding.figure, finding.text))
                self._quiet_until[name] = len(self._rows) + self._section.quiet_steps
        self.raised += found
        return found

    # --- what is looked at

    def _values(self, name: str) -> list[float]:
        return self._columns.get(name, [])

    def _levels(self, name: str) -> tuple[float, float] | None:
        """Mean of the first rows and of the last that have this metric; None until there are enough, or if it is not
        in the newest row.
        """
        values = self._values(name)
        if name not in self._rows[-1] or len(values) < _RECENT:
            return None
        return statistics.fmean(values[:_RECENT]), statistics.fmean(values[-_RECENT:])

    # --- rules

    def _spike(self, name: str) -> _Finding | None:
        values = self._values(name)
        if name not in self._rows[-1] or len(values) <= _SPIKE_HISTORY:
            return None
        *before, value = values[-_SPIKE_MEMORY - 1 :]
        usual = statistics.median(before)
        spread = statistics.median(abs(x - usual) for x in before)
        if value <= usual + self._section.spike * spread or value <= self._section.spike_ratio * abs(usual):
            return None
        sizes = self._values("groups/used")
        if sizes and self._rows[-1].get("groups/used", 0) < statistics.median(sizes) / 2:
            return None  # a step of few groups, such as the last of an epoch, is noisier by nature
        return _Finding(
            value,
            f"{name} is {value:.3g} after a median of {usual:.3g} over {len(before)} steps; likely a bad batch (see "
            "transcripts.jsonl) or a learning rate too high; try half of optimizer.learning_rate",
        )

    def _entropy(self) -> _Finding | None:
        levels = self._levels("entropy")
        if levels is None or levels[1] >= self._section.entropy * levels[0]:
            return None
        first, last = levels
        return _Finding(
            last,
            f"entropy fell from {first:.3g} to {last:.3g} nats per token; the policy hardly varies its answers any "
            "more, so groups lose their signal; try a lower learning rate, a larger loss.kl_coefficient, or stop here",
        )

    def _kl(self) -> _Finding | None:
        levels = self._levels("kl")
        if levels is None or levels[1] <= self._section.kl:
            return None
        return _Finding(
            levels[1],
            f"KL to the reference is {levels[1]:.3g} nats per token (limit {self._section.kl:g}); the policy leaves "
            "the text it knows; try a larger loss.kl_coefficient or a lower learning rate",
        )

    def _length(self) -> _Finding | None:
        levels = self._levels("completions/clipped_ratio")
        if levels is None or levels[1] <= max(self._section.clipped, levels[0] + self._section.clipped / 2):
            return None
        first, last = levels
        return _Finding(
            last,
            f"{last:.0%} of completions are cut at the length limit, {first:.0%} were at the start; answers grow, or "
            "the end is forgotten; try a larger sampling.max_new_tokens, or the reward soft_overlong",
        )

    def _sampler_gap(self) -> _Finding | None:
        levels = self._levels("sampler/gap")
        if levels is None or levels[1] <= max(self._section.sampler_gap, levels[0] + self._section.sampler_gap / 2):
            return None
        first, last = levels
        return _Finding(
            last,
            f"servers and engine differ by {last:.3g} nats per token, by {first:.3g} at the start; answers are less "
            "and less the policy's own; try servers in the precision of training (--dtype), or a lower learning rate",
        )

    def _chosen_falls(self) -> _Finding | None:
        levels, size = self._levels("rewards/chosen"), self._values("logps/chosen")
        if levels is None or not self._watched.beta:
            return None
        fall = -levels[1] / self._watched.beta
        usual = abs(statistics.fmean(size[:_RECENT]))
        if fall <= self._section.chosen_fall * usual:
            return None
        return _Finding(
            fall,
            f"chosen completions lost {fall:.3g} nats of log-prob to the reference, of {usual:.3g}; DPO pushes both "
            "sides down; try a larger loss.beta, a lower learning rate or fewer epochs",
        )

    def _no_signal(self) -> _Finding | None:
        silent, reward = self._levels("frac_reward_zero_std"), self._levels("reward")
        if silent is None or silent[1] <= self._section.silent or (reward is not None and _has_risen(*reward)):
            return None
        return _Finding(
            silent[1],
            f"{silent[1]:.0%} of groups have equal rewards and teach nothing, and the reward has not risen; the task "
            "is too hard or the reward too coarse; try easier prompts, more rollout.completions_per_prompt, or a "
            "reward with steps between",
        )

    def _saturated(self) -> _Finding | None:
        silent, reward = self._levels("frac_reward_zero_std"), self._levels("reward")
        if silent is None or reward is None or silent[1] <= self._section.silent or not _has_risen(*reward):
            return None
        return _Finding(
            silent[1],
            f"{silent[1]:.0%} of groups have equal rewards, at a mean of {reward[1]:.3g}; this data has hardly "
            "anything left to teach; stop here, or go on with harder prompts",
        )

    def _held_out_falls(self) -> _Finding | None:
        name, newest = self._watched.held_out, self._rows[-1]
        trained = self._values(self._watched.trained)
        if name not in newest or len(self._values(name)) < 2 or not trained:
            return None
        seen = [row for row in self._rows if name in row]
        best = max(seen[:-1], key=lambda row: row[name])
        if newest[f"{name}/high"] >= best[f"{name}/low"]:
            return None
        until_best = [row[self._watched.trained] for row in self._rows if row["step"] <= best["step"]
                      and self._watched.trained in row]  # fmt: skip
        then, now = statistics.fmean(until_best[-_RECENT:]), statistics.fmean(trained[-_RECENT:])
        if now < then:
            return None
        return _Finding(
            newest[name],
            f"{name.removeprefix('eval/')} on held-out data fell from {best[name]:.3g} (step {best['step']:.0f}) to "
            f"{newest[name]:.3g} while {self._watched.trained} in training went from {then:.3g} to {now:.3g}; the "
            f"reward is gamed or the data learned by heart; the checkpoint of step {best['step']:.0f} is better",
        )


def _has_risen(first: float, last: float) -> bool:
    return last > first + 1e-6 * max(1.0, abs(first))
