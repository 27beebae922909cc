"""Which objectives exist: the keys each reads and their defaults, what it needs, where it starts. Imports no torch.

The loss of an entry is the function of the same name in dpo/losses, its implicit reward one in dpo/losses/rewards.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Keys: TypeAlias = Mapping[str, float]
REQUIRED = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One objective.

    keys       configuration keys that it reads, with their defaults; REQUIRED where the field has none
    unit       what its loss has one value of, and the step divides by the number of
    reference  whether it compares with the reference
    reward     its implicit reward
    start      its value where policy and reference are equal, as a function of its keys; None where that depends on
               the data, or where there is no reference
    """

    keys: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    unit: Literal["pair", "ranking", "completion"] = "pair"
    reference: bool = True
    reward: str = "scaled_logratio"
    start: Callable[[Keys], float | None] | None = None


def _always(value: float) -> Callable[[Keys], float]:
    return lambda _: value


def _start_of_exo(keys: Keys) -> float:
    """KL from an even choice to [1 - e, e]."""
    e = keys["label_smoothing"]
    return -math.log(2) - (math.log1p(-e) + math.log(e)) / 2


def _start_of_a_classifier(value: float) -> Callable[[Keys], float | None]:
    """The same for every completion where both kinds weigh the same; otherwise it depends on their numbers."""
    return lambda keys: (
        value * keys["desirable_weight"] if keys["desirable_weight"] == keys["undesirable_weight"] else None
    )


LN_2 = _always(math.log(2))
WEIGHTS = {"desirable_weight": 1.0, "undesirable_weight": 1.0}

OBJECTIVES: dict[str, Entry] = {
    "sigmoid": Entry(keys={"beta": 0.1, "label_smoothing": 0.0}, start=LN_2),
    "robust": Entry(keys={"beta": 0.1, "label_smoothing": 0.1}, start=LN_2),
    "hinge": Entry(keys={"beta": 0.05}, start=_always(1.0)),
    "ipo": Entry(keys={"beta": 0.1}, start=lambda keys: 1 / (2 * keys["beta"]) ** 2),
    "ipo_per_token": Entry(keys={"beta": 0.1}, reward="mean_logratio", start=lambda keys: 1 / (2 * keys["beta"]) ** 2),
    "exo": Entry(keys={"beta": 0.1, "label_smoothing": 1e-3}, start=_start_of_exo),
    "nca": Entry(keys={"beta": 0.01}, start=_always(2 * math.log(2))),
    "bco": Entry(keys={"beta": 0.01, "shift_decay": 0.9}, start=_always(2 * math.log(2))),
    "sppo": Entry(keys={"beta": 0.001}, start=lambda keys: 2 / (2 * keys["beta"]) ** 2),
    "apo_zero": Entry(keys={"beta": 0.1}, start=_always(1.0)),
    "apo_down": Entry(keys={"beta": 0.1}, start=_always(1.0)),
    "discopop": Entry(keys={"beta": 0.05, "tau": 0.05}, start=_always((math.log(2) + 1) / 2)),
    "f_forward_kl": Entry(keys={"beta": 0.1}, reward="forward_kl", start=LN_2),
    "f_js": Entry(keys={"beta": 0.1}, reward="js", start=LN_2),
    "f_alpha": Entry(keys={"beta": 0.1, "divergence_alpha": 0.5}, reward="alpha", start=LN_2),
    "aot": Entry(keys={"beta": 0.01, "label_smoothing": 0.0}, start=LN_2),
    "aot_unpaired": Entry(keys={"beta": 0.01, "label_smoothing": 0.0}, start=LN_2),
    "length_normalised": Entry(keys={"beta": 5.0}, reward="mean_logratio", start=LN_2),
    "ld_dpo": Entry(keys={"beta": 0.1, "tail_weight": 0.5}, reward="shortened_logratio", start=LN_2),
    "r_dpo": Entry(keys={"beta": 0.1, "length_penalty": REQUIRED}, reward="unpenalised_logratio"),
    "wpo": Entry(keys={"beta": 0.01}),
    "dpop": Entry(keys={"beta": 0.3, "penalty": 50.0}, start=LN_2),
    "rpo": Entry(keys={"beta": 0.01, "likelihood_weight": 0.005}),
    "iterative_rpo": Entry(keys={"beta": 0.1, "likelihood_weight": 1.0}),
    "plackett_luce": Entry(keys={"beta": 0.1}, unit="ranking"),
    "simpo": Entry(keys={"beta": 2.5, "gamma": 1.375}, reference=False, reward="scaled_mean_logp"),
    "orpo": Entry(keys={"odds_weight": 0.1}, reference=False, reward="odds"),
    "cpo": Entry(keys={"beta": 0.1, "likelihood_weight": 1.0}, reference=False, reward="scaled_logp"),
    "sft": Entry(reference=False, reward="plain_logp"),
    "sft_per_token": Entry(reference=False, reward="mean_logp"),
    "unlikelihood": Entry(keys={"unlikelihood_weight": REQUIRED}, reference=False, reward="plain_logp"),
    "kto": Entry(keys={"beta": 0.1, **WEIGHTS}, unit="completion", start=_start_of_a_classifier(0.5)),
    "apo_zero_unpaired": Entry(keys={"beta": 0.1, **WEIGHTS}, unit="completion", start=_start_of_a_classifier(0.5)),
    "bco_unpaired": Entry(
        keys={"beta": 0.01, "shift_decay": 0.9, **WEIGHTS},
        unit="completion",
        start=_start_of_a_classifier(math.log(2)),
    ),
}
