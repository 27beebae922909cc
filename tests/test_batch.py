"""The row layout, checked against a naive reading of it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from groupwise.batch import pack, split_by_tokens, unpack_tokens
from groupwise.groups import Completion, Group, completion_tokens, forward_tokens

ids = st.lists(st.integers(0, 50), min_size=1, max_size=8).map(tuple)
scores = st.sampled_from([0.0, 0.5, 1.0])
completion = st.builds(
    lambda token_ids, score: Completion(token_ids=token_ids, finished=True, score=score), ids, scores
)
group = st.builds(
    lambda prompt, completions: Group(key="x:1", prompt_ids=prompt, completions=tuple(completions)),
    ids,
    st.lists(completion, min_size=1, max_size=4),
)
groups = st.lists(group, min_size=1, max_size=4)


@given(groups)
def test_every_completion_can_be_read_back_with_its_prompt(drawn: list[Group]) -> None:
    batch = pack(drawn)
    completions = [(g, c) for g in drawn for c in g.completions]
    for row, (source_group, source) in enumerate(completions):
        mine = batch.row_T == row
        assert tuple(batch.target_T[mine].tolist()) == source.token_ids
        # What predicts token k is the input k-1 of prompt + completion, at position prompt + k - 1.
        whole = source_group.prompt_ids + source.token_ids
        prompt = len(source_group.prompt_ids)
        places = batch.source_T[mine]
        assert batch.input_ids_S[places].tolist() == list(whole[prompt - 1 : -1])
        assert batch.position_S[places].tolist() == list(range(prompt - 1, len(whole) - 1))


@given(groups)
def test_the_row_holds_each_prompt_once_and_no_padding(drawn: list[Group]) -> None:
    batch = pack(drawn)
    assert len(batch.input_ids_S) == sum(forward_tokens(g) for g in drawn)
    assert batch.n_tokens == sum(completion_tokens(g) for g in drawn)
    assert batch.length_R.tolist() == [len(c.token_ids) for g in drawn for c in g.completions]


@given(groups)
def test_pairs_are_all_strict_orders_within_a_group(drawn: list[Group]) -> None:
    batch = pack(drawn)
    naive = [
        [i, j]
        for i in range(batch.n_completions)
        for j in range(batch.n_completions)
        if batch.group_R[i] == batch.group_R[j] and batch.score_R[i] > batch.score_R[j]
    ]
    assert sorted(batch.pairs_K2.tolist()) == naive


@given(groups)
def test_sums_and_cuts_per_completion_agree(drawn: list[Group]) -> None:
    batch = pack(drawn)
    values_T = torch.arange(batch.n_tokens, dtype=torch.float64)
    sums = [part.sum().item() for part in unpack_tokens(batch, values_T)]
    assert batch.sum_per_completion(values_T).tolist() == sums


@given(groups, st.integers(1, 60))
def test_micro_batches_keep_order_and_limit(drawn: list[Group], limit: int) -> None:
    parts = split_by_tokens(drawn, limit)
    assert [g for part in parts for g in part] == drawn
    for part in parts:
        assert len(part) == 1 or sum(forward_tokens(g) for g in part) <= limit
