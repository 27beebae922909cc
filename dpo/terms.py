"""What preference losses read of a micro-batch: each term is computed once, and only when a loss names it.

A loss names its terms by its arguments: `chosen_logratio_K` is the log-ratio of the chosen completion of every pair.
Knows no loss and no configuration.
Legend: T completion tokens, R completions, K pairs, N completions of one side.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from groupwise.batch import GroupBatch, unpack_tokens
from groupwise.model.engine import TokenScores

Side = Literal["chosen", "rejected"]
OF_THE_STEP = ("matched_reference_margin_K", "matched_rejected_K", "matched_chosen_K")


class Terms:
    """Terms of one micro-batch. Per completion, on either side of a pair or of all:

    logp, logratio           summed over tokens, nats; the ratio is to the reference
    length                   tokens
    certainty                mean over tokens of log p - log sum_v p_v^2, nats, without gradient
    head_logratio, tail_...  log-ratio of a pair's first min(|y_w|, |y_l|) tokens, and of those behind them

    Of all completions also `score_R`, `group_R`, `desirable_R` (a score above 0), and what the step knows: numbers,
    and one value for each pair by the group's key. Raises ValueError for a term that the batch has not got.
    """

    def __init__(
        self,
        batch: GroupBatch,
        scores: TokenScores,
        *,
        numbers: Mapping[str, float] | None = None,
        matched: Mapping[str, Mapping[str, tuple[float, ...]]] | None = None,
    ) -> None:
        self._batch = batch
        self._scores = scores
        self._numbers = numbers or {}
        self._matched = matched or {}
        self._known: dict[str, Tensor] = {}
        self.chosen_K, self.rejected_K = batch.pairs_K2.unbind(dim=1)

    def __getitem__(self, name: str) -> Tensor:
        """A term by its name with shape."""
        if name not in self._known:
            with torch.enable_grad():  # who asks first may not want a gradient, who asks next may
                self._known[name] = self._computed(name)
        return self._known[name]

    def apply(self, function: Callable[..., Tensor], keys: Mapping[str, float]) -> Tensor:
        """A loss of these terms; `keys` are the numbers that it takes from the configuration."""
        wanted = terms_of(function)
        return function(*(self[name] for name in wanted), **_read_by(function, keys))

    def apply_to_side(
        self, function: Callable[..., Tensor], keys: Mapping[str, float], side: Side | Literal["all"]
    ) -> Tensor:
        """A reward of the chosen, the rejected, or all completions."""
        whole: Callable[[str], str] = lambda name: f"{name}_R" if side == "all" else f"{side}_{name}_K"  # noqa: E731
        return function(*(self[whole(name)] for name in terms_of(function)), **_read_by(function, keys))

    def _computed(self, name: str) -> Tensor:
        if name in self._numbers:
            return self._scores.logp_T.new_tensor(self._numbers[name])
        if name in OF_THE_STEP:
            return self._from_the_step(name)
        side, _, rest = name.partition("_")
        if side in ("chosen", "rejected"):
            base = rest.removesuffix("_K")
            own_K = self.chosen_K if side == "chosen" else self.rejected_K
            if base in ("head_logratio", "tail_logratio"):
                return self._part_of_pair(own_K, tail=base == "tail_logratio")
            return self[f"{base}_R"][own_K]
        return self._of_completions(name.removesuffix("_R"))

    def _of_completions(self, base: str) -> Tensor:
        batch = self._batch
        if base == "logp":
            return batch.sum_per_completion(self._scores.logp_T)
        if base == "logratio":
            return self["logp_R"] - batch.sum_per_completion(self._reference_logp_T())
        if base == "length":
            return batch.length_R.to(self._scores.logp_T.dtype)
        if base == "certainty":
            collision_T = self._scores.log_collision_T
            if collision_T is None:
                raise ValueError("a certainty needs log_collision_T of every token")
            return batch.sum_per_completion(self._scores.logp_T.detach() - collision_T) / self["length_R"]
        if base == "desirable":
            return batch.score_R > 0
        if base in ("score", "group"):
            return batch.score_R if base == "score" else batch.group_R
        raise ValueError(f"there is no term {base!r}")

    def _reference_logp_T(self) -> Tensor:
        if self._batch.reference_logp_T is None:
            raise ValueError("this objective needs the reference log-probs of every completion")
        return self._batch.reference_logp_T

    def _part_of_pair(self, own_K: Tensor, *, tail: bool) -> Tensor:
        """Log-ratio of the tokens up to the shorter completion's length, or of those behind, [K]."""
        ratios = unpack_tokens(self._batch, self._scores.logp_T - self._reference_logp_T())
        length_R = self._batch.length_R
        shared_K = torch.minimum(length_R[self.chosen_K], length_R[self.rejected_K])
        parts = [
            ratios[row][shared:].sum() if tail else ratios[row][:shared].sum()
            for row, shared in zip(own_K.tolist(), shared_K.tolist(), strict=True)
        ]
        return torch.stack(parts) if parts else self._scores.logp_T.new_zeros(0)

    def _from_the_step(self, name: str) -> Tensor:
        known = self._matched.get(name)
        if known is None:
            raise ValueError(f"{name} is known after for_step only")
        return self._scores.logp_T.new_tensor([value for key in self._batch.keys for value in known[key]])


@cache
def terms_of(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """The terms that a loss names: its arguments that may be given by position.

    >>> from dpo.losses.pairwise import bco
    >>> terms_of(bco)
    ('chosen_logratio_K', 'rejected_logratio_K', 'reward_shift')
    """
    arguments = inspect.signature(function).parameters.values()
    return tuple(argument.name for argument in arguments if argument.kind is not inspect.Parameter.KEYWORD_ONLY)


@cache
def keys_of(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """The keys that a loss reads: its keyword arguments.

    >>> from dpo.losses.pairwise import bco
    >>> keys_of(bco)
    ('beta',)
    """
    arguments = inspect.signature(function).parameters.values()
    return tuple(argument.name for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY)


def _read_by(function: Callable[..., Tensor], keys: Mapping[str, float]) -> dict[str, float]:
    return {name: keys[name] for name in keys_of(function)}
