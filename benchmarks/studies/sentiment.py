"""Reviews written by an adapter, their ground-truth sentiment and how far the writer is from the base model.

One measure for every method of a study, whatever it was trained with. Knows no training.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from groupwise.data.rows import read_rows
from groupwise.data.text import TextEncoder
from groupwise.groups import Completion, Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, sequence_logratios
from groupwise.model.loading import quiet_libraries
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.rewards.load import load_score
from groupwise.sections import LoraSection, ModelSection

BASE = "model/base_gpt2"
PROMPTS = "data/raw/reviews_heldout.jsonl"
TEMPERATURE = 0.7  # that of the default DPO run, at which its KL is measured too
_MOST_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean ground-truth score (-1 to 1), share of positive reviews, mean sequence KL to the base in nats."""

    score: float
    positive: float
    kl: float


class Writer:
    """The base model, or the base with a run's adapter, writing reviews on held-out prompts."""

    def __init__(self, run: Path | None = None, *, rank: int = 16, alpha: int = 32) -> None:
        quiet_libraries()
        self._policy = Policy.load(ModelSection(path=BASE), LoraSection(rank=rank, alpha=alpha), seed=0, device="cpu")
        if run is not None:
            self._policy.restore(run / "adapter")
        self._engine = LogprobEngine(self._policy)
        self._encoder = TextEncoder(self._policy.tokenizer, max_prompt_tokens=64, max_completion_tokens=_MOST_TOKENS)
        self._texts = [str(row.values["prompt"]) for row in read_rows(PROMPTS)]
        encoded = self._encoder.encode_prompts(self._texts, self._texts)
        self._prompts = [ids for ids in encoded if ids is not None]
        self._score = load_score("review_sentiment", key="study")

    @torch.no_grad()
    def write(self, *, n: int = 1, temperature: float = TEMPERATURE, seed: int = 0) -> list[list[Completion]]:
        """`n` reviews of every held-out prompt, each with its ground-truth score."""
        drawn = sample_completions(
            self._engine,
            self._prompts,
            n=n,
            params=SamplingParams(temperature=temperature, max_new_tokens=_MOST_TOKENS),
            end_ids=self._encoder.stop_ids,
            seed=seed,
            streams=range(len(self._prompts)),
        )
        return [
            [replace(c, score=self._score(text + self._encoder.decode(c.token_ids))) for c in own]
            for text, own in zip(self._texts, drawn, strict=True)
        ]

    def measure(self, *, n: int = 2, temperature: float = TEMPERATURE) -> Measured:
        """Scores and KL of `n` fresh reviews of every prompt."""
        reviews = self.write(n=n, temperature=temperature)
        groups = [
            Group(key=key, prompt_ids=prompt, completions=tuple(own))
            for key, prompt, own in zip(self._texts, self._prompts, reviews, strict=True)
        ]
        ratios = sequence_logratios(self._engine, groups, tokens_per_forward=4096, temperature=temperature)
        scores = [completion.score for own in reviews for completion in own]
        return Measured(statistics.fmean(scores), positive_share(scores), statistics.fmean(ratios))


def positive_share(scores: Sequence[float]) -> float:
    return sum(score > 0 for score in scores) / len(scores)
