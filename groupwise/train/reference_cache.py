"""Reference log-probs of a data set, computed once and kept on disk. Knows nothing about what they are used for.

The key of an entry is everything the numbers depend on and nothing else: the reference as it is in memory (weights
and configuration), the token ids (which hold data, tokenization and limits), and the precision.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupwise.groups import Group, fingerprint, forward_tokens
from groupwise.model.engine import LogprobEngine, reference_logprobs, with_reference
from groupwise.train.runtime import Runtime


def cached_reference(
    engine: LogprobEngine,
    groups: Sequence[Group],
    folder: Path,
    *,
    base_model: str,
    tokens_per_forward: int,
    precision: str,
    runtime: Runtime,
) -> tuple[list[Group], bool]:
    """The groups with their reference log-probs, and whether these were found on disk.

    A damaged entry is computed again, each process doing its part. `base_model` is the policy's `base_fingerprint`;
    `precision` names the autocast mode that forward passes run in.
    """
    file = folder / f"reference-{_key(engine, groups, base_model, precision)}.safetensors"
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    stored = _read(file, sum(lengths))
    if not runtime.any(stored is None) and stored is not None:  # who has found it waits for nobody who has not
        return with_reference(groups, stored.split(lengths)), True
    scored = shared_reference(engine, groups, tokens_per_forward=tokens_per_forward, runtime=runtime)
    runtime.together(lambda: _write(file, scored) if runtime.is_main else None)
    return scored, False


def shared_reference(
    engine: LogprobEngine, groups: Sequence[Group], *, tokens_per_forward: int, runtime: Runtime
) -> list[Group]:
    """Groups that every process holds with their reference log-probs; each computes its part, and gets all numbers.

    Raises NotFinite as `reference_logprobs` does, on all processes.
    """

    def logps(part: list[Group]) -> list[NDArray[Any]]:
        scored = reference_logprobs(engine, part, tokens_per_forward=tokens_per_forward)
        return [_joined([group]).numpy() for group in scored]

    found = runtime.divided(groups, logps, forward_tokens)  # as arrays of bytes; groups would take ten times the way
    joined_T = [torch.from_numpy(own) for own in found]
    lengths = [[len(completion.token_ids) for completion in group.completions] for group in groups]
    return with_reference(
        groups, [part_T for own_T, own in zip(joined_T, lengths, strict=True) for part_T in own_T.split(own)]
    )


def _joined(groups: Sequence[Group]) -> Tensor:
    """Reference log-probs of all completions, end to end."""
    return torch.cat([c.reference_logp for group in groups for c in group.completions if c.reference_logp is not None])


def _write(file: Path, groups: Sequence[Group]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".writing-{os.getpid()}")
    save_file({"reference_logp_T": _joined(groups)}, aside)
    aside.replace(file)


def _read(file: Path, tokens: int) -> Tensor | None:
    """What the file holds of so many tokens, or None where it is not there or damaged."""
    try:
        stored_T = load_file(file)["reference_logp_T"]
    except (OSError, SafetensorError, KeyError):
        return None
    return stored_T if stored_T.shape == (tokens,) and bool(torch.isfinite(stored_T).all()) else None


def _key(engine: LogprobEngine, groups: Sequence[Group], base_model: str, precision: str) -> str:
    parts = (base_model, fingerprint(groups, scores=False), precision, engine.policy.device.type)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
