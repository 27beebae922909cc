"""Did it work? One sentence in plain words, with the figure, its interval and what it cost.

Knows nothing about methods: they say which figure decides, and what else was measured.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from groupwise.observe.samples import LengthBias
from groupwise.observe.statistics import Figure

Kind = Literal["gain", "no gain", "loss", "gamed"]
_LENGTH_DECIDES = 0.97  # a reward of right answers reaches 0.9 where the base is right when it works at length
_LENGTH_CHANGES = 0.2
_ENOUGH_PAIRS = 50
_ROUNDING = 1e-6  # relative; a score may come from float32


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after; `difference` is taken prompt by prompt, so its interval is the one that decides.

    `share`: shown in per cent. `label` reads well before "rose from".
    """

    label: str
    before: Figure
    after: Figure
    difference: Figure
    share: bool = True

    @property
    def kind(self) -> Literal["gain", "no gain", "loss"]:
        """Whether the interval of the difference lies above, around or below 0, rounding left aside."""
        rounding = _ROUNDING * max(abs(self.before.value), abs(self.after.value))
        return "gain" if self.difference.low > rounding else "loss" if self.difference.high < -rounding else "no gain"

    def words(self) -> str:
        """The change as half a sentence.

        >>> change = Change("right answers", Figure(0.41, 0.4, 0.42, 9), Figure(0.88, 0.8, 0.9, 9),
        ...                 Figure(0.47, 0.43, 0.51, 9))
        >>> change.words()
        'right answers rose from 41 % to 88 % (+47 points, 95 % interval 43 to 51)'
        """
        d = self.difference
        if self.share:
            by = f"{100 * d.value:+.3g} points, 95 % interval {100 * d.low:.3g} to {100 * d.high:.3g}"
            ends = f"from {100 * self.before.value:.3g} % to {100 * self.after.value:.3g} %"
        else:
            by = f"{d.value:+.3g}, 95 % interval {d.low:.3g} to {d.high:.3g}"
            ends = f"from {self.before.value:.3g} to {self.after.value:.3g}"
        verb = {"gain": "rose", "loss": "fell", "no gain": "went"}[self.kind]
        return f"{self.label} {verb} {ends} ({by})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a run: the sentence, and its kind for programs."""

    kind: Kind
    text: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on.

    `decides` is the figure that answers the question, `others` are told besides, first of them what was trained on.
    Lengths are mean tokens per answer; `kl` is nats per answer; `bias` is that of the trained score.
    """

    decides: Change
    others: Sequence[Change]
    trained: Change | None
    tokens: tuple[float, float]
    kl: float | None
    bias: LengthBias | None
    alarms: Sequence[str]


def verdict(evidence: Evidence) -> Verdict:
    """The first of these that holds: gamed, gain, loss, no significant gain."""
    told = [evidence.decides, *evidence.others]
    figures = "; ".join(change.words() for change in told)
    tail = "; ".join([_length(evidence.tokens), *_kl(evidence.kl), _alarms(evidence.alarms)])
    gamed = _gamed(evidence)
    if gamed is not None:
        return Verdict("gamed", f"The reward is being gamed: {gamed}. {_sentence(figures)}; {tail}.")
    kind = evidence.decides.kind
    head = {"gain": "It worked", "loss": "It made things worse", "no gain": "No significant gain"}[kind]
    return Verdict(kind, f"{head}: {figures}; {tail}.")


def _gamed(evidence: Evidence) -> str | None:
    """How the trained score rose without what it stands for; None where it did not."""
    trained, (before, after) = evidence.trained, evidence.tokens
    if trained is None or trained.kind != "gain":
        return None
    if evidence.decides.kind != "gain" and evidence.decides.label != trained.label:
        return f"{trained.words()}, but {evidence.decides.label} did not rise"
    bias, change = evidence.bias, (after - before) / before
    if bias is not None and bias.pairs >= _ENOUGH_PAIRS and abs(change) >= _LENGTH_CHANGES:
        share, kind = (bias.share, "longer") if change > 0 else (1 - bias.share, "shorter")
        if share >= _LENGTH_DECIDES:
            return (
                f"of two answers to one prompt the {kind} one has the higher reward in {100 * share:.3g} % of "
                f"{bias.pairs} pairs, and answers got {100 * abs(change):.3g} % {kind}: it pays for length"
            )
    return None


def _length(tokens: tuple[float, float]) -> str:
    before, after = tokens
    change = (after - before) / before
    if abs(change) < 0.005:
        return "answers kept their length"
    return f"answers got {100 * abs(change):.3g} % {'longer' if change > 0 else 'shorter'}"


def _kl(kl: float | None) -> list[str]:
    return [] if kl is None else [f"KL {kl:.2g} nats"]


def _alarms(names: Sequence[str]) -> str:
    if not names:
        return "no alarms"
    different = sorted(set(names))
    return f"{len(names)} alarm{'s' if len(names) > 1 else ''} ({', '.join(different)})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
