"""Groups as a handful of tensors and back, every number to the bit: on disk, and on the way between processes.

Knows nothing about checkpoints, nor who sends what to whom.

Legend: B groups, R completions, T completion tokens, P prompt tokens.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupwise.groups import PER_TOKEN, Completion, Group


def as_tensors(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Everything that is known of some groups, as flat tensors of a number that does not grow with them.

    Entries of a file's header are counted: safetensors reads none above 100 MB. What only some completions have lies
    end to end in one tensor per field and type, beside a mask of who has it.

    >>> a = Completion(token_ids=(5, 0), finished=True, score=1.0, sampled_logp=torch.tensor([-0.5, -1.0]))
    >>> b = Completion(token_ids=(7,), finished=False, score=0.0)
    >>> tensors = as_tensors([Group(key="x:1", prompt_ids=(8, 9), completions=(a, b))])
    >>> tensors["token_ids_T"].tolist(), tensors["length_R"].tolist()
    ([5, 0, 7], [2, 1])
    >>> tensors["sampled_logp.float32"].tolist(), tensors["sampled_logp.float32.known_R"].tolist()
    ([-0.5, -1.0], [True, False])
    """
    completions = [completion for group in groups for completion in group.completions]
    tensors = {
        "keys": torch.frombuffer(bytearray(json.dumps([group.key for group in groups]).encode()), dtype=torch.uint8),
        "prompt_ids_P": _ids(group.prompt_ids for group in groups),
        "prompt_length_B": torch.tensor([len(group.prompt_ids) for group in groups], dtype=torch.long),
        "completions_B": torch.tensor([len(group.completions) for group in groups], dtype=torch.long),
        "token_ids_T": _ids(completion.token_ids for completion in completions),
        "length_R": torch.tensor([len(completion.token_ids) for completion in completions], dtype=torch.long),
        "finished_R": torch.tensor([completion.finished for completion in completions], dtype=torch.bool),
        "score_R": torch.tensor([completion.score for completion in completions], dtype=torch.float64),
    }
    for field in PER_TOKEN:
        values: list[Tensor | None] = [getattr(completion, field) for completion in completions]
        for dtype in {value.dtype for value in values if value is not None}:
            own = [value if value is not None and value.dtype == dtype else None for value in values]
            name = f"{field}.{str(dtype).removeprefix('torch.')}"
            tensors[name] = torch.cat([value for value in own if value is not None]).cpu()
            tensors[f"{name}.known_R"] = torch.tensor([value is not None for value in own])
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> list[Group]:
    """The groups that `as_tensors` was given; no tensor of theirs shares memory with these."""
    lengths: list[int] = tensors["length_R"].tolist()
    known: list[dict[str, Tensor]] = [{} for _ in lengths]
    for name, has_R in tensors.items():
        if name.endswith(".known_R"):
            place = name.removesuffix(".known_R")
            owners = has_R.nonzero().squeeze(1).tolist()
            pieces = tensors[place].split([lengths[owner] for owner in owners])
            for owner, piece in zip(owners, pieces, strict=True):
                # Of its own memory: where a tensor lies decides how products of it round.
                known[owner][place.split(".")[0]] = piece.clone()
    completions = [
        Completion(token_ids=ids, finished=finished, score=score, **own)
        for ids, finished, score, own in zip(
            _cut(tensors["token_ids_T"], lengths),
            tensors["finished_R"].tolist(),
            tensors["score_R"].tolist(),
            known,
            strict=True,
        )
    ]
    remaining = iter(completions)
    return [
        Group(key=key, prompt_ids=prompt_ids, completions=tuple(islice(remaining, count)))
        for key, prompt_ids, count in zip(
            json.loads(bytes(tensors["keys"].tolist())),
            _cut(tensors["prompt_ids_P"], tensors["prompt_length_B"].tolist()),
            tensors["completions_B"].tolist(),
            strict=True,
        )
    ]


def save_groups(groups: Sequence[Group], file: Path) -> None:
    """Write groups into a safetensors file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "rollout.safetensors"
    >>> a = Completion(token_ids=(5, 0), finished=True, score=1.0, sampled_logp=torch.tensor([-0.5, -1.0]))
    >>> save_groups([Group(key="x:1", prompt_ids=(8, 9), completions=(a,))], file)
    >>> load_groups(file)[0].completions[0].sampled_logp
    tensor([-0.5000, -1.0000])
    """
    save_file(as_tensors(groups), file)


def load_groups(file: Path) -> list[Group]:
    """What `save_groups` wrote."""
    return from_tensors(load_file(file))


def _ids(texts: Iterable[Sequence[int]]) -> Tensor:
    return torch.from_numpy(np.fromiter(chain.from_iterable(texts), dtype=np.int32))


def _cut(ids: Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Ids that lay end to end."""
    every: list[int] = ids.tolist()
    start = 0
    for length in lengths:
        yield tuple(every[start : start + length])
        start += length
