"""A run's model as one plain folder that other programs load, proved to be the same function before it is in place.

Knows neither method, nor what stands on the model card.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from groupwise.deploy.trained import HeldOutSample, TrainedConfig
from groupwise.errors import RunStopped, UserError
from groupwise.model.head import rounding
from groupwise.model.loading import load_network
from groupwise.model.policy import Policy
from groupwise.train.checkpoint import sync

TEXTS = 64  # held-out prompts, each with its first answer, that the proof runs


@dataclass(frozen=True, slots=True)
class Proof:
    """The folder's model, read back from disk, against base and adapter: largest differences between logits.

    texts, tokens   what was run: held-out prompts with the tuned model's answers
    cut             texts of these that were longer than the model has positions, and ended there
    largest         between the folder's model and the tuned one
    allowed         what `largest` must not exceed: rounding of the base's precision, at the largest logit
    effect          between the tuned model and its base: what training did
    same_choice     share of tokens after which both find the same next token likeliest
    dtype           of the folder's weights
    """

    texts: int
    tokens: int
    cut: int
    largest: float
    allowed: float
    effect: float
    same_choice: float
    dtype: str

    @property
    def holds(self) -> bool:
        return self.largest <= self.allowed  # false for NaN

    def lines(self) -> list[str]:
        """For the terminal and the model card."""
        said = [
            f"largest difference between logits of the merged model and of base + adapter: {self.largest:.3g} "
            f"(allowed in {self.dtype}: {self.allowed:.3g}), over {self.tokens} tokens of {self.texts} held-out texts",
            f"training itself moved logits by up to {self.effect:.3g}; the likeliest next token is the same after "
            f"{self.same_choice:.2%} of tokens",
        ]
        if self.cut:
            said.append(f"{self.cut} texts were cut at the model's last position")
        if self.effect <= self.allowed:
            said.append(
                f"warning: rounding in {self.dtype} allows more than training did, so the difference proves little; "
                "serve the adapter beside its base, or train with model.dtype float32"
            )
        return said


def export_merged(
    policy: Policy,
    config: TrainedConfig,
    samples: Sequence[HeldOutSample],
    target: Path,
    *,
    card: Callable[[Proof], str],
) -> Proof:
    """Write `target`: weights, configuration, tokenizer, and the README.md that `card` makes of the proof.

    Everything is written into a folder aside, read back, compared with the policy, and renamed. Needs memory for a
    second copy of the model. Raises UserError when the folder exists or cannot be written, or when there are no samples
    to compare on; RunStopped, with the folder left aside, when what was read back is another function.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: exists and is left as it is; choose another folder")
    if config.model.trust_remote_code:
        raise UserError("model.trust_remote_code: a model that brings its own code is not exported; serve its adapter")
    if not samples:
        raise UserError("the run has no samples.jsonl to compare on; python dpo/eval.py or grpo/eval.py writes it")
    aside = target.with_name(f".writing-{target.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_merged(policy, config, aside)
        proof = prove(policy, aside, samples)
        if not proof.holds:
            raise RunStopped(
                "\n".join(
                    [
                        "the merged model is not the model that was trained",
                        *proof.lines(),
                        f"it is left in {aside} to be looked at; the next try deletes it",
                    ]
                )
            )
        (aside / "README.md").write_text(card(proof), encoding="utf-8")
        for file in aside.iterdir():
            sync(file)
        sync(aside)
        aside.rename(target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target}: cannot be written: {error}; mend that, or choose another folder") from error
    return proof


@torch.no_grad()
def write_merged(policy: Policy, config: TrainedConfig, folder: Path) -> None:
    """The base as its publisher wrote it, with every weight that is another now, as safetensors; and the tokenizer."""
    network = load_network(config.model.model_copy(update={"quantization": "none"}))
    for name, weight in policy.merged_weights():
        network.get_parameter(name).copy_(weight)
    network.save_pretrained(str(folder), safe_serialization=True)
    policy.tokenizer.save_pretrained(str(folder))


@torch.no_grad()
def prove(policy: Policy, folder: Path, samples: Sequence[HeldOutSample]) -> Proof:
    """Read a written model back and compare its logits with the policy's, both by their own attention.

    Raises RunStopped when a trained weight is not read back to the bit.
    """
    dtype = policy.model.dtype
    merged: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    for name, weight in policy.merged_weights():
        if not torch.equal(merged.get_parameter(name), weight.cpu()):
            raise RunStopped(f"{folder}: {name} is not read back as it was written; the disk or the merge is at fault")
    cast(nn.Module, merged).to(policy.device).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    largest = effect = highest = 0.0
    tokens = same = cut = 0
    chosen = samples[:TEXTS]
    with policy.as_loaded():
        for sample in chosen:
            ids: list[int] = tokenizer(sample.prompt + sample.answers[0], verbose=False)["input_ids"]
            kept = ids[: policy.positions]
            cut += len(kept) < len(ids)
            row = torch.tensor([kept], device=policy.device)
            tuned = _logits(policy.active, row)
            with policy.base():
                effect = _larger(effect, (tuned - _logits(policy.active, row)).abs())
            found = _logits(merged, row)
            largest = _larger(largest, (found - tuned).abs())
            highest = _larger(highest, tuned.abs())
            same += int((found.argmax(dim=-1) == tuned.argmax(dim=-1)).sum())
            tokens += len(kept)
    return Proof(
        texts=len(chosen),
        tokens=tokens,
        cut=cut,
        largest=largest,
        allowed=rounding(dtype) * max(1.0, highest),
        effect=effect,
        same_choice=same / tokens,
        dtype=str(dtype).removeprefix("torch."),
    )


def _logits(model: PreTrainedModel, row: Tensor) -> Tensor:
    """[tokens, V], in float32 or wider."""
    logits = model(input_ids=row, use_cache=False).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _larger(before: float, values: Tensor) -> float:
    """NaN stays: `max` of Python would drop it."""
    found = values.max().item()
    return found if not found <= before else before
