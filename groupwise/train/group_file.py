"""Groups on disk and back, all tensors to the bit: safetensors beside JSON. Knows nothing about checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path

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
                {"token_ids": c.token_ids, "finished": c.finished, "score": c.score} for c in group.completions
            ],
        }
        for group in groups
    ]
    tensors: dict[str, Tensor] = {
        f"{i}.{j}.{field}": value.contiguous()
        for i, group in enumerate(groups)
        for j, completion in enumerate(group.completions)
        for field in PER_TOKEN
        if (value := getattr(completion, field)) is not None
    }
    (folder / f"{name}.json").write_text(json.dumps(described), encoding="utf-8")
    save_file(tensors or {"none": torch.zeros(0)}, folder / f"{name}.safetensors")


def load_groups(folder: Path, name: str) -> list[Group]:
    """What `save_groups` wrote."""
    described = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / f"{name}.safetensors")
    return [
        Group(
            key=group["key"],
            prompt_ids=tuple(group["prompt_ids"]),
            completions=tuple(
                Completion(
                    token_ids=tuple(c["token_ids"]),
                    finished=c["finished"],
                    score=c["score"],
                    **{field: tensors.get(f"{i}.{j}.{field}") for field in PER_TOKEN},
                )
                for j, c in enumerate(group["completions"])
            ),
        )
        for i, group in enumerate(described)
    ]
