"""What rewards give to real answers, and to answers that deserve nothing. Knows neither prompts nor rewards themselves.

Legend: R completions.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from groupwise.data.text import TextEncoder
from groupwise.preflight.report import Report
from groupwise.rewards.protocol import Answer

_LENGTH_LIKE = 0.9
_SAME = 0.95
_AGAINST = -0.5


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where one side does not vary.

    >>> rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]), rank_correlation([1, 2, 3], [5, 5, 5])
    (1.0, None)
    >>> rank_correlation([1, 2, 2, 3], [3, 2, 2, 1])
    -1.0
    """
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return round(float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]), 12)


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, index, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[index]


def tell_scores(by_reward: Mapping[str, Sequence[float | None]], report: Report) -> None:
    """How each reward is distributed, and how far each two agree."""
    for name, values in by_reward.items():
        known = [value for value in values if value is not None]
        if not known:
            report.error(f"reward {name}: gives none of {len(values)} answers a score")
            continue
        report.ok(
            f"reward {name}: {min(known):.4g} to {max(known):.4g}, mean {statistics.fmean(known):.4g}, half up to "
            f"{statistics.median_low(known):.4g}, {len(set(known))} different values in {len(values)} answers"
        )
        if len(known) < len(values):
            report.warning(f"reward {name}: has no score for {len(values) - len(known)} of {len(values)} answers")
    for one, other in combinations(by_reward, 2):
        both = zip(by_reward[one], by_reward[other], strict=True)
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        agreement = rank_correlation([a for a, _ in pairs], [b for _, b in pairs])
        if agreement is None:
            continue
        line = f"rewards {one} and {other}: rank correlation {agreement:.2f}"
        if agreement > _SAME:
            report.warning(f"{line}; they say the same, so one of them counts twice")
        elif agreement < _AGAINST:
            report.warning(f"{line}; they pull against each other")
        else:
            report.ok(line)


def check_length(totals: Sequence[float], lengths: Sequence[int], report: Report) -> None:
    """Whether the reward orders answers as their length does."""
    agreement = rank_correlation(totals, [float(length) for length in lengths])
    if agreement is not None and abs(agreement) > _LENGTH_LIKE:
        way = "longer" if agreement > 0 else "shorter"
        report.warning(
            f"the reward is nearly the length: rank correlation {agreement:.2f} with the number of tokens, so "
            f"{way} answers are all that would be learned"
        )
    elif agreement is not None:
        report.ok(f"rank correlation of reward and length: {agreement:.2f}")


@dataclass(frozen=True, slots=True)
class Probe:
    """An answer that deserves nothing, to one prompt."""

    name: str
    answer: Answer


def probes(prompt: str, sample: Sequence[int], encoder: TextEncoder, *, group: int, most_tokens: int) -> list[Probe]:
    """Answers to `prompt` without merit, each as the sampler could have drawn it; `sample` is a real answer's ids."""
    end = min(encoder.stop_ids)
    real = [i for i in sample if i not in encoder.stop_ids] or [end]

    def encoded(text: str) -> list[int]:
        return encoder.tokenizer.encode(text, add_special_tokens=False)

    repeated = encoded(" the") or real[:1]
    bodies = {
        "the empty answer": [],
        "repetition of one word": (repeated * most_tokens)[: most_tokens - 1],
        "a very long answer": (real * most_tokens)[: most_tokens - 1],
        "a copy of the prompt": encoded(prompt)[: most_tokens - 1],
    }
    return [
        Probe(name, Answer(text=encoder.decode(body), token_ids=(*body, end), finished=True, group=group))
        for name, body in bodies.items()
    ]


def judge_probes(
    names: Sequence[str], totals: Sequence[float | None], samples: Sequence[float], report: Report
) -> None:
    """Warn of every kind of probe whose median reward is more than the median sample's, or the most of all."""
    median, most = statistics.median_low(samples), max(samples)
    paid = False
    for name in dict.fromkeys(names):
        values = [total for own, total in zip(names, totals, strict=True) if own == name and total is not None]
        if not values:
            continue
        value = statistics.median_low(values)
        if value > median or (value >= most > min(samples)):
            paid = True
            report.warning(
                f"this reward can be gamed by {name}: it gets {value:.4g}, the median sample {median:.4g}, the best "
                f"{most:.4g}"
            )
    if not paid:
        report.ok(f"no reward for {', '.join(dict.fromkeys(names))}")
