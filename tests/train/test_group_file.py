"""Groups on disk: every number to the bit, whatever is known of which completion, and a header that does not grow."""

from pathlib import Path

import torch

from groupwise.groups import PER_TOKEN, Completion, Group
from groupwise.train.group_file import load_groups, save_groups


def _header(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[:8], "little")


def _group(key: str, *completions: Completion) -> Group:
    return Group(key=key, prompt_ids=(8, 9), completions=completions)


def test_what_is_known_of_some_completions_only_comes_back_to_them_in_its_own_type(tmp_path: Path) -> None:
    single, double = torch.tensor([0.1, 0.2]), torch.tensor([0.3], dtype=torch.float64)
    groups = [
        _group(
            "x:1",
            Completion(token_ids=(5, 0), finished=True, score=1.0, sampled_logp=single, advantage=single * 2),
            Completion(token_ids=(6,), finished=False, score=0.0),
        ),
        _group("x:2", Completion(token_ids=(7,), finished=False, score=0.5, sampled_logp=double)),
        _group("x:3", Completion(token_ids=(1, 2), finished=False, score=0.5, sampled_logp=single * 3)),
    ]
    save_groups(groups, tmp_path / "rollout.safetensors")
    back = load_groups(tmp_path / "rollout.safetensors")
    assert [group.key for group in back] == ["x:1", "x:2", "x:3"]
    for group, found in zip(groups, back, strict=True):
        for given, read in zip(group.completions, found.completions, strict=True):
            assert (given.token_ids, given.finished, given.score) == (read.token_ids, read.finished, read.score)
            for field in PER_TOKEN:
                wanted, value = getattr(given, field), getattr(read, field)
                assert (wanted is None) == (value is None)
                assert wanted is None or (wanted.dtype == value.dtype and torch.equal(wanted, value))


def test_the_header_does_not_grow_with_the_number_of_completions(tmp_path: Path) -> None:
    """safetensors reads no header above 100 MB; 640,000 completions of three fields would have needed more."""
    one = Completion(token_ids=(5,), finished=False, score=0.0, sampled_logp=torch.zeros(1), advantage=torch.ones(1))
    for count in (1, 1000):
        save_groups([_group("x", *[one] * count)], tmp_path / f"{count}.safetensors")
    # The offsets have more digits, and that is all.
    assert _header(tmp_path / "1000.safetensors") < 1.2 * _header(tmp_path / "1.safetensors")
