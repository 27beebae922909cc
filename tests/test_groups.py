"""Groups on their way between processes."""

import pickle

import torch

from groupwise.groups import PER_TOKEN, Completion, Group


def test_a_completion_comes_out_of_the_way_between_processes_as_it_went_in() -> None:
    known = {name: torch.randn(3, dtype=torch.float64) for name in PER_TOKEN[:2]}
    one = Completion(token_ids=(5, 70_000, 0), finished=True, score=0.25, **known)
    bare = Completion(token_ids=(1,), finished=False, score=-1.0)
    sent = Group(key="x:1", prompt_ids=(3, 4), completions=(one, bare))
    got = pickle.loads(pickle.dumps(sent))
    assert (got.key, got.prompt_ids) == (sent.key, sent.prompt_ids)
    for theirs, ours in zip(got.completions, sent.completions, strict=True):
        assert (theirs.token_ids, theirs.finished, theirs.score) == (ours.token_ids, ours.finished, ours.score)
        for name in PER_TOKEN:
            value, expected = getattr(theirs, name), getattr(ours, name)
            assert (value is None) == (expected is None)
            assert value is None or (torch.equal(value, expected) and value.dtype == expected.dtype)
    got.completions[0].sampled_logp.add_(1)  # it is the receiver's own, and may be used like any tensor
