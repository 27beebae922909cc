"""Groups on disk and back, all tensors to the bit: safetensors beside JSON. Knows nothing about checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupwise.groups import PER_TOKEN, Completion, Group


def save_groups(groups: Sequence[Group], folder: Path, name: str) -> None:
    """Write `name.json` (keys, ids, scores) and `name.safetensors` (what is known of every token) into the folder.

    >>> import tempfile
    >>> a = Completion(token_ids=(5, 0), finished=True, score=1.0, sampled_logp=torch.tensor([-0.5, -1.0]))
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_groups([Group(key="x:1", prompt_ids=(8, 9), completions=(a,))], folder, "rollout")
    >>> load_groups(folder, "rollout")[0].completions[0].sampled_logp
    tensor([-0.5000, -1.0000])
    """
    described = [
        {
            "key": group.key,
            "prompt_ids": group.prompt_ids,
            "completions": [
                {
                    "token_ids": c.token_ids,
                    "finished": c.finished,
                    "score": c.score,
                    "known": [_place(field, value) for field in PER_TOKEN if (value := getattr(c, field)) is not None],
                }
                for c in group.completions
            ],
        }
        for group in groups
    ]
    # One tensor per field and type: a header entry per completion would pass the format's 100 MB.
    values: dict[str, list[Tensor]] = {}
    for group in groups:
        for completion in group.completions:
            for field in PER_TOKEN:
                value = getattr(completion, field)
                if value is not None:
                    values.setdefault(_place(field, value), []).append(value)
    tensors = {place: torch.cat(own) for place, own in values.items()}
    (folder / f"{name}.json").write_text(json.dumps(described), encoding="utf-8")
    save_file(tensors or {"none": torch.zeros(0)}, folder / f"{name}.safetensors")


def load_groups(folder: Path, name: str) -> list[Group]:
    """What `save_groups` wrote."""
    described = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / f"{name}.safetensors")
    used = dict.fromkeys(tensors, 0)

    def known(c: dict[str, Any]) -> dict[str, Tensor]:
        """The next pieces of the fields that this completion has; of its own memory, for pieces are kept apart."""
        length = len(c["token_ids"])
        found: dict[str, Tensor] = {}
        for place in c["known"]:
            found[place.split(".")[0]] = tensors[place][used[place] : used[place] + length].clone()
            used[place] += length
        return found

    return [
        Group(
            key=group["key"],
            prompt_ids=tuple(group["prompt_ids"]),
            completions=tuple(
                Completion(token_ids=tuple(c["token_ids"]), finished=c["finished"], score=c["score"], **known(c))
                for c in group["completions"]
            ),
        )
        for group in described
    ]


def _place(field: str, value: Tensor) -> str:
    """The name of the tensor that holds a field's values of this type."""
    return f"{field}.{str(value.dtype).removeprefix('torch.')}"
