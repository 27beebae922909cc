"""Groups of a step over processes: each is with one of them, all have about as much, and nothing is lost on the way."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from groupwise.groups import Group, forward_tokens
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals, packed, unpacked
from tests.conftest import random_groups
from tests.train.test_processes import run_processes

CUT_TO = 30


def groups_of_a_step() -> list[Group]:
    return random_groups(9, vocabulary=200, completions=4)


def test_one_process_has_everything_and_a_long_group_in_parts() -> None:
    groups = groups_of_a_step()
    share = StepShare.of(groups, Runtime(), cut_to=CUT_TO)
    assert share.totals == StepTotals.of(groups), "a group that is cut counts once"
    assert len(share.groups) > len(groups) and list(share.places) == sorted(share.places)
    whole = share.first(99, Runtime())
    assert [group.key for group in whole] == [group.key for group in groups]
    assert [group.completions for group in whole] == [group.completions for group in groups]
    assert [group.key for group in share.first(2, Runtime())] == [group.key for group in groups[:2]]
    assert StepShare.of(groups, Runtime()).groups == tuple(groups), "what reads whole groups gets them whole"


def test_what_goes_to_another_process_arrives_to_the_bit() -> None:
    (group,) = random_groups(1, vocabulary=200, completions=2)
    first, second = group.completions
    logp_T = torch.randn(len(first.token_ids), dtype=torch.float64)
    sent = group.replace_completions([replace(first, sampled_logp=logp_T, score=0.1 + 0.2), second])
    ((place, back),) = unpacked(packed([((7, 1), sent)]))
    assert place == (7, 1) and back.key == group.key and back.prompt_ids == group.prompt_ids
    read = back.completions[0]
    assert read.score == 0.1 + 0.2 and read.finished == first.finished and read.token_ids == first.token_ids
    assert read.sampled_logp is not None and torch.equal(read.sampled_logp, logp_T)
    assert back.completions[1].sampled_logp is None


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes was dealt."""
    out = tmp_path_factory.mktemp("shares")
    run_processes(3, ["-m", "tests.train.process_shares", str(out)])
    return [json.loads((out / f"found-{rank}.json").read_text()) for rank in range(3)]


def as_json(share: StepShare) -> list[Any]:
    parts = [
        [place, group.key, group.prompt_ids, [c.token_ids for c in group.completions]] for place, group in share.parts
    ]
    return json.loads(json.dumps(parts))


def test_groups_that_one_process_sampled_are_learned_from_by_all(found: list[dict[str, Any]]) -> None:
    groups = groups_of_a_step()
    wanted = as_json(StepShare.of(groups, Runtime(), cut_to=CUT_TO))
    together = sorted((part for own in found for part in own["collected"]), key=lambda part: part[0])
    assert together == wanted, "every part is with exactly one process"
    for own in found:
        assert own["totals"] == [len(groups), StepTotals.of(groups).tokens, StepTotals.of(groups).prompt_tokens]
        assert own["collected"] == own["dealt"], "wherever groups lay, the same process learns from them"
        assert own["restored"] == own["collected"], "from disk each gets its own again"
        assert own["first"] == [[g.key, [list(c.token_ids) for c in g.completions]] for g in groups[:3]]


def test_nobody_waits_for_somebody_with_much_more_to_do(found: list[dict[str, Any]]) -> None:
    """Groups in turn, as prompts are dealt, would leave the longest answers wherever they fell."""
    costs = {
        place: forward_tokens(group)
        for place, group in StepShare.of(groups_of_a_step(), Runtime(), cut_to=CUT_TO).parts
    }
    loads = [sum(costs[tuple(part[0])] for part in own["collected"]) for own in found]
    assert max(loads) <= min(loads) + max(costs.values())
