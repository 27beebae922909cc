"""The section `loss` of a preference run: which objective, or mixture of objectives, with which numbers.

What an objective does not read is refused, and what it reads is filled in, so that a run's config.yaml shows what was
active. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from pydantic import Field, model_validator

from dpo.catalogue import OBJECTIVES, Entry
from groupwise.config import Section
from groupwise.errors import nearest
from groupwise.sections import ReferenceSchedule

NAMES = ", ".join(OBJECTIVES)


class ObjectiveKeys(Section):
    """Numbers that objectives read; null where the chosen one does not."""

    beta: float | None = Field(
        default=0.1,
        gt=0,
        description="1/nat; pull to the reference, usually 0.1-0.5, or 2-10 where log-probs are means per token; null: "
        "the objective's default, as for all keys down to undesirable_weight",
    )
    label_smoothing: float | None = Field(
        default=0.0, ge=0, lt=0.5, description="share of pairs believed to be labelled the wrong way round"
    )
    tau: float | None = Field(default=None, gt=0, description="discopop: width of the change between its two losses")
    gamma: float | None = Field(default=None, ge=0, description="simpo: margin that chosen rewards must win by")
    divergence_alpha: float | None = Field(
        default=None, description="f_alpha: 1 is the reverse KL (sigmoid), 0 the forward KL"
    )
    tail_weight: float | None = Field(
        default=None, ge=0, le=1, description="ld_dpo: weight of tokens beyond the shorter completion's length"
    )
    length_penalty: float | None = Field(default=None, description="r_dpo: reward that a completion token costs")
    penalty: float | None = Field(
        default=None, ge=0, description="dpop: weight of what the chosen completion loses to the reference"
    )
    likelihood_weight: float | None = Field(
        default=None, ge=0, description="rpo, iterative_rpo, cpo: weight of the chosen completion's likelihood"
    )
    unlikelihood_weight: float | None = Field(
        default=None, ge=0, description="unlikelihood: weight of the rejected completion's; the DPO paper tries 0.05-1"
    )
    odds_weight: float | None = Field(default=None, ge=0, description="orpo: weight of the odds ratio")
    shift_decay: float | None = Field(
        default=None, ge=0, lt=1, description="bco, bco_unpaired: what a step leaves of the running reward shift"
    )
    desirable_weight: float | None = Field(
        default=None, gt=0, description="kto, apo_zero_unpaired, bco_unpaired: weight of desirable completions"
    )
    undesirable_weight: float | None = Field(
        default=None,
        gt=0,
        description="as desirable_weight: weight of the others; times their number this should be 1 to 2/3 of what "
        "desirable_weight is times the number of desirable ones",
    )


KEYS = tuple(ObjectiveKeys.model_fields)


class MixedObjective(ObjectiveKeys):
    """One objective of a mixture; keys that are not set are taken from `loss` where it sets them."""

    objective: str = Field(description="as loss.objective")
    weight: float = Field(default=1.0, gt=0, description="what its mean is multiplied by; weights need not sum to 1")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return _filled(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        _check(self.objective, self)
        return self

    @property
    def entry(self) -> Entry:
        return OBJECTIVES[self.objective]

    @property
    def keys(self) -> dict[str, float]:
        """What the objective reads."""
        return {name: cast(float, getattr(self, name)) for name in self.entry.keys}


class DpoLossSection(ObjectiveKeys, ReferenceSchedule):
    """What is minimised; formulas, papers and defaults in docs/objectives.md."""

    objective: str | None = Field(default="sigmoid", description=f"{NAMES}; sigmoid is DPO; null with a mixture")
    mixture: tuple[MixedObjective, ...] = Field(
        default=(), description="several objectives instead: [{objective: sigmoid, weight: 0.8}, {objective: sft}]"
    )
    reference_every: int = Field(default=512, ge=1, description="optimizer steps between moves of the reference")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = cast(Mapping[str, Any], values)
        mixture = given.get("mixture")
        if not mixture:
            # What a validator hands on is held to Python's types, where a list is no tuple.
            return _filled({**given, "mixture": ()} if "mixture" in given else given)
        if given.get("objective") is not None:
            raise ValueError(
                "objective and mixture exclude each other; set objective to null and put it into the mixture"
            )
        shared = {name: given[name] for name in KEYS if given.get(name) is not None}
        unset = {name: None for name in KEYS if name not in shared}
        return {**given, **unset, "objective": None, "mixture": _with_shared(mixture, shared)}

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        if not self.mixture:
            _check(self.objective or "sigmoid", self)
        read = {key for part in self.parts for key in part.entry.keys}
        unread = [name for name in KEYS if getattr(self, name) is not None and name not in read]
        if unread:
            raise ValueError(f"no objective of the mixture reads {', '.join(unread)}; remove it or set it to null")
        names = [part.objective for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError("an objective stands in the mixture twice; add their weights up")
        units = {part.entry.unit == "completion" for part in self.parts}
        if len(units) > 1:
            raise ValueError(
                "the mixture has objectives for pairs and for single labelled completions; data is one or the other"
            )
        if self.reference != "frozen" and not self.needs_reference:
            raise ValueError(
                f"reference {self.reference!r} moves what {', '.join(names)} does not read; set it to frozen"
            )
        return self

    @property
    def parts(self) -> tuple[MixedObjective, ...]:
        """The objectives, with what each reads; a single one has weight 1."""
        if self.mixture:
            return self.mixture
        name = self.objective or "sigmoid"
        own = {key: getattr(self, key) for key in OBJECTIVES[name].keys}
        return (MixedObjective.model_validate({"objective": name, **own}),)

    @property
    def needs_reference(self) -> bool:
        """Whether any objective compares with the reference."""
        return any(part.entry.reference for part in self.parts)

    @property
    def steps_run_reference(self) -> bool:
        """Whether training steps need the reference network itself, not only log-probs that were kept."""
        return self.reference != "frozen" or self.compares_across_prompts

    @property
    def compares_across_prompts(self) -> bool:
        """Whether completions are also read behind other prompts than their own, as z0 of KTO is measured."""
        return any(part.objective == "kto" for part in self.parts)

    @property
    def learns_from_labels(self) -> bool:
        """Whether the data must be single completions, labelled desirable or not."""
        return self.parts[0].entry.unit == "completion"


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is set, and the objective's own default of every key that is not."""
    given = {key: value for key, value in values.items() if value is not None or key not in KEYS}
    entry = OBJECTIVES.get(str(given.get("objective") or "sigmoid"))
    if entry is None:
        return dict(values)
    defaults = {key: entry.keys.get(key) for key in KEYS}
    fields = ObjectiveKeys.model_fields
    return {key: value for key, value in defaults.items() if value != fields[key].default} | given


def _with_shared(mixture: Any, shared: Mapping[str, Any]) -> Any:
    """The mixture with the keys of `loss` in every objective that reads them and does not set them."""
    if not isinstance(mixture, Sequence) or not all(isinstance(part, Mapping) for part in cast(Sequence[Any], mixture)):
        return mixture
    parts: list[dict[str, Any]] = []
    for part in cast(Sequence[Mapping[str, Any]], mixture):
        entry = OBJECTIVES.get(str(part.get("objective")), Entry())
        own = {key: value for key, value in part.items() if value is not None}
        parts.append({key: value for key, value in shared.items() if key in entry.keys} | own)
    return tuple(parts)


def _check(objective: str, section: ObjectiveKeys) -> None:
    """Raise ValueError for an objective that does not exist, a key that it does not read, or one that it lacks."""
    entry = OBJECTIVES.get(objective)
    if entry is None:
        near = nearest(objective, OBJECTIVES)
        raise ValueError(
            f"there is no objective {objective!r}; " + (f"did you mean {near}?" if near else f"there are {NAMES}")
        )
    unread = [name for name in KEYS if getattr(section, name) is not None and name not in entry.keys]
    if unread:
        reads = ", ".join(entry.keys) or "none of these keys"
        raise ValueError(
            f"objective {objective} does not read {', '.join(unread)} (it reads {reads}); remove it or set it to null"
        )
    lacking = [name for name in entry.keys if getattr(section, name) is None]
    if lacking:
        raise ValueError(f"objective {objective} needs {', '.join(lacking)}; the field has no default, so set it")
    if objective == "exo" and section.label_smoothing == 0:
        raise ValueError("objective exo needs label_smoothing above 0: its target [1 - e, e] must not hold a zero")
