"""One token per row: the search in the cumulative sum, and what truncation leaves."""

from typing import Any

import pytest
import torch

from groupwise.model.drawing import SamplingParams, draw, search, truncated


@pytest.mark.parametrize("size", [3, 255, 256, 257, 1000])
def test_the_search_finds_the_token_of_the_plain_cumulative_sum(size: int) -> None:
    """Blocks or not, the token is the first whose running sum exceeds the number; never one of probability 0."""
    generator = torch.Generator().manual_seed(size)
    p = torch.rand(400, size, generator=generator, dtype=torch.float64)
    p = p.masked_fill(torch.rand(400, size, generator=generator) < 0.4, 0.0)
    p[:, 1] += 0.1
    p = p / p.sum(dim=-1, keepdim=True)
    uniform = torch.rand(400, generator=generator, dtype=torch.float64)
    uniform[:3] = torch.tensor([0.0, 1 - 2**-53, 0.5])
    found = search(p, uniform)
    plain = (p.cumsum(dim=-1) <= uniform[:, None]).sum(dim=-1).clamp(max=size - 1)
    assert (p.gather(1, found[:, None]) > 0).all()
    assert torch.equal(found[3:], plain[3:])


def test_a_number_just_below_one_never_draws_an_impossible_token() -> None:
    p = torch.tensor([[0.25, 0.75, 0.0]])
    assert search(p, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.4}, [0.4, 0, 0, 0]),
        ({"top_p": 0.41}, [0.4, 0.3, 0, 0]),
        ({"min_p": 0.5}, [0.4, 0.3, 0.2, 0]),
        ({"top_k": 3, "top_p": 0.8}, [0.4, 0.3, 0.2, 0]),  # of 0.9 that top-k leaves, 0.7 is not 80 %
        ({"top_k": 3, "top_p": 0.75}, [0.4, 0.3, 0, 0]),
    ],
)
def test_truncation_by_hand(options: dict[str, Any], kept: list[float]) -> None:
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    left = truncated(p, SamplingParams(**options))
    assert left.tolist() == [kept]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}])
def test_a_row_of_nan_draws_inside_the_vocabulary_and_spoils_no_other(options: dict[str, Any]) -> None:
    """An index outside a table ends a process on a GPU, before anyone could say which prompt gave NaN."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, 700, generator=generator, dtype=torch.float64).softmax(dim=-1)
    uniform = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    whole, _, _ = draw(p, uniform, SamplingParams(**options))
    p[1] = torch.nan
    token, _, _ = draw(p, uniform, SamplingParams(**options))
    assert 0 <= token[1] < 700
    assert token[[0, 2]].tolist() == whole[[0, 2]].tolist()
