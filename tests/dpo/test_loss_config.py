"""The section `loss`: defaults per objective, mixtures, and what makes no sense."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from dpo.catalogue import OBJECTIVES
from dpo.loss_config import KEYS, DpoLossSection


def section(**values: Any) -> DpoLossSection:
    return DpoLossSection.model_validate_json(json.dumps(values))


NEEDED = {"r_dpo": {"length_penalty": 0.05}, "unlikelihood": {"unlikelihood_weight": 0.5}}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_an_objective_reads_is_filled_in_and_loads_again(name: str) -> None:
    one = section(objective=name, **NEEDED.get(name, {}))
    (part,) = one.parts
    assert part.keys == {**OBJECTIVES[name].keys, **NEEDED.get(name, {})}
    assert all(getattr(one, key) is None for key in KEYS if key not in part.keys)
    assert section(**one.model_dump(mode="json")) == one
    assert section(objective=name, **(dict.fromkeys(KEYS) | NEEDED.get(name, {}))) == one


def test_a_mixture_takes_shared_keys_where_it_reads_and_does_not_set_them() -> None:
    one = section(beta=0.3, mixture=[{"objective": "sigmoid", "weight": 0.8}, {"objective": "bco", "beta": 0.2},
                                     {"objective": "sft"}])  # fmt: skip
    assert [(part.objective, part.weight, part.keys.get("beta")) for part in one.parts] == [
        ("sigmoid", 0.8, 0.3), ("bco", 1.0, 0.2), ("sft", 1.0, None),
    ]  # fmt: skip
    assert one.needs_reference and not one.learns_from_labels
    assert section(**one.model_dump(mode="json")) == one


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a key nobody reads": ({"objective": "simpo", "label_smoothing": 0.1}, "simpo does not read label_smoothing"),
    "even at its default": ({"objective": "orpo", "beta": 0.1}, "orpo does not read beta"),
    "a key that is needed": ({"objective": "r_dpo"}, "r_dpo needs length_penalty"),
    "a mistyped name": ({"objective": "simpoo"}, "did you mean simpo"),
    "an unknown name": ({"objective": "ppo_clip"}, "there are sigmoid, robust"),
    "no reference to move": ({"objective": "orpo", "reference": "copy"}, "moves what orpo does not read"),
    "an interval nobody reads": ({"reference_every": 7}, "reference_every is read by reference copy or average"),
    "a share nobody reads": ({"reference": "copy", "reference_mix": 0.5}, "reference_mix is read by reference average"),
    "EXO on hard labels": ({"objective": "exo", "label_smoothing": 0.0}, "exo needs label_smoothing above 0"),
    "pairs and labels": ({"mixture": [{"objective": "kto"}, {"objective": "sft"}]}, "data is one or the other"),
    "a shared key nobody reads": ({"mixture": [{"objective": "sft"}], "beta": 0.2}, "no objective of the mixture"),
    "an own key nobody reads": ({"mixture": [{"objective": "sft", "beta": 0.2}]}, "sft does not read beta"),
    "one twice": ({"mixture": [{"objective": "sft"}, {"objective": "sft"}]}, "stands in the mixture twice"),
    "both": ({"objective": "sigmoid", "mixture": [{"objective": "sft"}]}, "exclude each other"),
    "weight 0": ({"mixture": [{"objective": "sft", "weight": 0}]}, "greater than 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_makes_no_sense_is_refused_with_the_remedy(name: str) -> None:
    values, part = MISTAKES[name]
    with pytest.raises(ValidationError, match=part):
        section(**values)


def test_a_reference_moves_before_the_step_after_every_so_many() -> None:
    average = section(reference="average", reference_every=3, reference_mix=0.4)
    assert [average.reference_moves(step) for step in range(7)] == [0, 0, 0, 0.4, 0, 0, 0.4]
    assert section(reference="copy", reference_every=2).reference_moves(2) == 1.0
    assert not any(section().reference_moves(step) for step in range(1000))
