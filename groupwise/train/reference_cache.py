"""Reference log-probs of a data set, computed once and kept on disk. Knows nothing about what they are used for.

The key of an entry is everything the numbers depend on and nothing else: the reference as it is in memory (weights
and configuration), the token ids (which hold data, tokenization and limits), and the precision.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
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
    scored = runtime.divided(
        groups,
        lambda part: reference_logprobs(engine, part, tokens_per_forward=tokens_per_forward),
        forward_tokens,
    )
    if not runtime.is_main:
        return scored, False
    logps = [c.reference_logp for group in scored for c in group.completions if c.reference_logp is not None]
    folder.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".writing-{os.getpid()}")
    save_file({"reference_logp_T": torch.cat(logps)}, aside)
    aside.replace(file)
    return scored, False


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
