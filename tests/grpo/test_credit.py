"""From scores and steps to the advantage of every token, by hand, and the identities between kinds of supervision."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from groupwise.groups import Completion, Group
from grpo.advantages import ALONE, Steps, advantages_of_each, group_advantages, return_advantages, step_advantages
from grpo.config import GrpoLossSection
from grpo.credit import ScoredGroup, with_advantages


def scored(steps: Sequence[Steps], lengths: Sequence[int], **known: object) -> ScoredGroup:
    completions = tuple(
        Completion(
            token_ids=(1,) * length,
            finished=True,
            score=0.0,
            sampled_logp=torch.full((length,), -1.0),
            reference_logp=torch.full((length,), -1.0 - 0.1 * (place + 1)),
        )
        for place, length in enumerate(lengths)
    )
    group = Group(key="x", prompt_ids=(1,), completions=completions)
    return ScoredGroup(group, {}, (), (), 0, steps=tuple(steps), **known)  # type: ignore[arg-type]


def advantages(one: ScoredGroup, weights: dict[str, float] | None = None, **options: object) -> list[list[float]]:
    loss = GrpoLossSection.model_validate(options)
    assert one.group is not None
    (group,) = with_advantages([one], [one.group], loss, weights or {}, ALONE)
    return [c.advantage.tolist() for c in group.completions if c.advantage is not None]


def test_process_supervision_by_hand() -> None:
    """Steps 3, 1 and 2, 2 over tokens 4 and 3: mean 2, deviation sqrt(1/2); a token gets the steps from it on."""
    one = scored([((1, 3.0), (3, 1.0)), ((0, 2.0), (2, 2.0))], (4, 3))
    root = math.sqrt(2)
    assert advantages(one)[0] == pytest.approx([0, 0, -root, -root], abs=1e-6)
    assert advantages(one)[1] == [0, 0, 0]
    assert advantages(one, advantage_scale="none")[0] == [0, 0, -1, -1]


def test_tokens_behind_the_last_step_get_nothing() -> None:
    found = advantages(scored([((1, 1.0),), ((0, 0.0),)], (4, 2)), advantage_scale="none")
    assert found == [[0.5, 0.5, 0, 0], [-0.5, 0]]


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_one_step_at_the_end_is_outcome_supervision(scale: str) -> None:
    rewards, lengths = [[0.3, 1.0, -2.0], [5.0, 5.5, 5.5]], [[3, 1, 2], [1, 1, 4]]
    steps = [
        [[(n - 1, r)] for n, r in zip(counts, own, strict=True)] for counts, own in zip(lengths, rewards, strict=True)
    ]
    found = step_advantages(steps, lengths, scale=scale)  # type: ignore[arg-type]
    outcome = group_advantages(rewards, scale=scale)  # type: ignore[arg-type]
    assert found == [[[a] * n for a, n in zip(*both, strict=True)] for both in zip(outcome, lengths, strict=True)]


def test_equal_steps_teach_nothing_and_different_ones_do_even_where_their_sums_are_equal() -> None:
    loss = GrpoLossSection()
    assert not scored([((0, 0.1), (1, 0.1)), ((1, 0.1),)], (2, 2)).teaches(loss)
    assert scored([((0, 1.0), (1, 0.0)), ((0, 0.0), (1, 1.0))], (2, 2)).teaches(loss)


def test_what_teaches_depends_on_the_baseline() -> None:
    right, wrong = scored([((0, 1.0),), ((0, 1.0),)], (1, 1)), scored([((0, 0.0),), ((0, 0.0),)], (1, 1))
    for preset, expected in (("grpo", (False, False)), ("reinforce_pp", (True, True)), ("rft", (True, False))):
        loss = GrpoLossSection.model_validate({"preset": preset})
        assert (right.teaches(loss), wrong.teaches(loss)) == expected


def test_without_baseline_and_scale_the_advantage_is_the_reward() -> None:
    """Eq. 10 of the paper: the coefficient of rejection sampling is I(o); a given answer's is 1, Eq. 7."""
    assert advantages(scored([((1, 1.0),), ((0, 0.0),)], (2, 1)), preset="rft") == [[1, 1], [0]]


def test_the_batch_mean_compares_across_groups() -> None:
    found = group_advantages([[1.0, 1.0], [0.0, 0.0]], scale="batch_std", baseline="batch_mean")
    assert found == [[1, 1], [-1, -1]]


def test_kl_off_the_reward_of_a_whole_completion() -> None:
    """k1 is 0.1 a token in the first completion, 0.2 in the second: 1 - 0.5 (0.1 x 2) = 0.9 and 0 - 0.5 (0.2 x 3)."""
    one = scored([((1, 1.0),), ((2, 0.0),)], (2, 3))
    options: dict[str, Any] = {"kl_place": "reward", "kl_form": "k1", "kl_coefficient": 0.5, "advantage_scale": "none"}
    found = advantages(one, **options)
    assert found[0] == pytest.approx([0.6, 0.6]) and found[1] == pytest.approx([-0.6] * 3)


def test_kl_off_the_reward_of_every_token() -> None:
    """Returns 1 - 0.5 (0.2), 1 - 0.5 (0.1) and -0.5 (0.2): normalised over all three tokens."""
    one = scored([((1, 1.0),), ((0, 0.0),)], (2, 1))
    found = advantages(one, preset="reinforce_pp", kl_coefficient=0.5)
    returns = [0.9, 0.95, -0.1]
    mean = sum(returns) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in returns) / 3)
    assert [*found[0], *found[1]] == pytest.approx([(value - mean) / deviation for value in returns], rel=1e-5)


def test_penalties_of_zero_leave_outcome_supervision() -> None:
    steps, zeros = [[[(1, 2.0)], [(0, 1.0)]]], [[[0.0, 0.0], [0.0]]]
    assert return_advantages(steps, zeros, scale="none", baseline="none") == [[[2.0, 2.0], [1.0]]]


def test_each_reward_normalised_by_itself_by_hand() -> None:
    """(1, -1) and (-1, 1) weighted 2 and 1 are (1, -1); standardised with the other group's (3, -3): by sqrt 5."""
    table = [[[5.0, 3.0], [0.1, 0.9]], [[1.0, 0.0], [7.0, 6.0]]]
    found = advantages_of_each(table, [2.0, 1.0], scale="group_std")
    root = math.sqrt(5)
    assert found[0] == pytest.approx([1 / root, -1 / root]) and found[1] == pytest.approx([3 / root, -3 / root])


def test_a_reward_without_opinion_counts_nothing_when_each_is_normalised() -> None:
    each = {"a": (1.0, 0.0, None), "b": (None, None, 2.0), "shown": (5.0, 6.0, 7.0)}
    one = scored([((0, 1.0),), ((0, 0.0),), ((0, 2.0),)], (1, 1, 1), each=each)
    found = advantages(one, {"a": 1.0, "b": 1.0, "shown": 0.0}, several_rewards="normalise_each")
    assert found[2] == [0] and found[0][0] == -found[1][0] > 0
