"""Reference log-probs of a data set, computed once and kept on disk. Knows nothing about what they are used for.

The key of an entry is everything the numbers depend on and nothing else: the reference's weights as they are in
memory, the token ids (which hold data, tokenization and limits), the precision, and the temperature.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine, reference_logprobs, with_reference


def cached_reference(
    engine: LogprobEngine, groups: Sequence[Group], folder: Path, *, tokens_per_forward: int, precision: str = "no"
) -> tuple[list[Group], bool]:
    """The groups with their reference log-probs, and whether these were found on disk.

    A damaged entry is computed again. `precision` names the autocast mode that forward passes run in.
    """
    file = folder / f"reference-{_key(engine, groups, precision)}.safetensors"
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    try:
        stored_T = load_file(file)["reference_logp_T"]
        return with_reference(groups, stored_T.split(lengths)), True
    except (OSError, SafetensorError, KeyError, RuntimeError):
        pass
    scored = reference_logprobs(engine, groups, tokens_per_forward=tokens_per_forward)
    logps = [c.reference_logp for group in scored for c in group.completions if c.reference_logp is not None]
    folder.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".writing")
    save_file({"reference_logp_T": torch.cat(logps)}, aside)
    aside.replace(file)
    return scored, False


def _key(engine: LogprobEngine, groups: Sequence[Group], precision: str) -> str:
    digest = hashlib.sha256()
    digest.update(f"{engine.policy.base_fingerprint()} {precision} {engine.policy.device.type}\n".encode())
    for group in groups:
        digest.update(f"{list(group.prompt_ids)}\n".encode())
        for completion in group.completions:
            digest.update(f" {list(completion.token_ids)}\n".encode())
    return digest.hexdigest()[:32]
