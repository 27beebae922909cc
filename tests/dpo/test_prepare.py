"""Holding out: no prompt on both sides, never more than asked."""

from hypothesis import given
from hypothesis import strategies as st

from dpo.prepare import hold_out
from groupwise.groups import Completion, Group


@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.integers(1, 20), st.integers(0, 5))
def test_no_prompt_is_on_both_sides_and_the_limit_holds(prompts: list[int], most: int, seed: int) -> None:
    completion = Completion(token_ids=(1,), finished=False, score=0.0)
    groups = [Group(key=str(i), prompt_ids=(p,), completions=(completion,)) for i, p in enumerate(prompts)]
    if len(set(prompts)) < 2:
        return
    train, heldout = hold_out(groups, most, seed=seed)
    assert {g.prompt_ids for g in train} & {g.prompt_ids for g in heldout} == set()
    assert sorted(g.key for g in train + heldout) == sorted(g.key for g in groups)
    assert train and heldout
    several = len({g.prompt_ids for g in heldout}) > 1
    assert not several or len(heldout) <= max(most, max(prompts.count(p) for p in prompts))
    assert hold_out(groups, most, seed=seed) == (train, heldout)
