"""The group-relative objective as configured: surrogate, weights, KL and entropy bonus put together and normalised.

Knows the configuration and which formula belongs to which key; the formulas are in grpo/losses/.
Legend: T completion tokens, R completions.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from groupwise.batch import GroupBatch, pack, split_by_tokens
from groupwise.model.engine import Extra, LogprobEngine, TokenScores
from groupwise.observe.metrics import MetricSums
from groupwise.train.objective import Objective
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals
from grpo.config import GrpoLossSection
from grpo.losses import surrogates
from grpo.losses.kl import kl_estimate, kl_k3
from grpo.losses.masks import above_floor, entropy_floor, near_policy, sampler_weight
from grpo.losses.ratio import ratio_of

_CLIPPED = ("clip", "gmpo", "cispo", "dppo")  # surrogates that stop or cap tokens


@dataclass(frozen=True, slots=True)
class EntropyControl:
    """The coefficient of an entropy bonus that is held to a target: Skywork-OR1 (arXiv 2505.22312, section 5).

    The coefficient rises by `step` after every step with an entropy of at most the target and falls otherwise; the
    bonus acts only while the entropy was at most the target at the step before.

    >>> control = EntropyControl(coefficient=0.0, entropy=float("inf"))
    >>> low = control.after(0.1, target=0.2, step=0.005, most=1.0)
    >>> low.coefficient, low.acting(0.2), control.acting(0.2)
    (0.005, 0.005, 0.0)
    """

    coefficient: float
    entropy: float  # of the step before, nats per token; infinite before the first

    def acting(self, target: float) -> float:
        return self.coefficient if self.entropy <= target else 0.0

    def after(self, entropy: float, *, target: float, step: float, most: float) -> "EntropyControl":
        moved = self.coefficient + (step if entropy <= target else -step)
        return EntropyControl(min(max(moved, 0.0), most), entropy)


@dataclass(frozen=True, slots=True)
class GrpoObjective(Objective):
    """The group-relative policy gradient, summed over tokens with the weights of the configured normaliser.

    `floor` is the entropy from which on tokens of this step are learned from, `control` what an adaptive entropy bonus
    has come to.
    """

    loss: GrpoLossSection
    constant_length: int
    floor: float | None = None
    control: EntropyControl | None = None

    @property
    def metric_names(self) -> tuple[str, ...]:
        loss = self.loss
        wanted = {
            "advantages/size": True,
            "ratio": loss.surrogate != "log_prob",
            "clip_ratio/low": loss.surrogate in _CLIPPED,
            "clip_ratio/high": loss.surrogate in _CLIPPED,
            "kl": loss.kl_coefficient > 0,
            "entropy/coefficient": loss.entropy_target is not None,
            "masked/low_entropy": loss.top_entropy < 1,
            "masked/off_policy": loss.off_policy_limit is not None,
            "sampler_weight": loss.sampler_cap is not None,
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    @property
    def extras(self) -> Collection[Extra]:
        bonus: tuple[Extra, ...] = ("entropy_gradient",) if self._entropy_coefficient > 0 else ()
        return (*bonus, "kl") if self.loss.kl_coefficient > 0 and self.loss.kl_form == "exact" else bonus

    def for_step(self, share: StepShare, *, engine: LogprobEngine, runtime: Runtime, tokens_per_forward: int) -> Self:
        """With the entropy that the step's highest share of tokens begins at, which takes a forward pass over it."""
        if self.loss.top_entropy == 1:
            return self
        mine: list[float] = []
        for part in split_by_tokens(share.groups, tokens_per_forward):
            batch = pack(part).to(runtime.device)
            with torch.no_grad():
                mine += engine.score(batch, temperature=self.temperature).entropy_T.tolist()
        return replace(self, floor=entropy_floor(runtime.gather(mine), self.loss.top_entropy))

    def loss_sum(self, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        """Sum over the micro-batch's tokens; the metrics are means over tokens."""
        advantage_T = _required(batch.advantage_T, "the advantages")
        sums.add("advantages/size", advantage_T.abs().sum(), batch.n_tokens)
        loss_T = -self._surrogate(batch, scores.logp_T, advantage_T, sums)
        loss_T = self._weighted(loss_T, batch, scores, advantage_T, sums)
        if self.loss.kl_coefficient > 0:
            loss_T = self._with_kl(loss_T, batch, scores, sums)
        if self.loss.entropy_target is not None:
            sums.add("entropy/coefficient", self._entropy_coefficient * batch.n_tokens, batch.n_tokens)
        if self._entropy_coefficient > 0:
            loss_T = loss_T - self._entropy_coefficient * scores.entropy_T
        if self.loss.normaliser == "completion":
            loss_T = loss_T / batch.length_R[batch.row_T]
        return loss_T.sum()

    def denominator(self, totals: StepTotals) -> int:
        """Completions of the step, its tokens, or its completions times a constant length."""
        if self.loss.normaliser == "token":
            return totals.tokens
        return totals.completions * (self.constant_length if self.loss.normaliser == "constant" else 1)

    # --- from step to step

    def after_step(self, values: Mapping[str, float]) -> Self:
        target = self.loss.entropy_target
        if target is None:
            return self
        moved = self._control.after(
            values["entropy"], target=target, step=self.loss.entropy_step, most=self.loss.entropy_most
        )
        return replace(self, control=moved)

    def memory(self) -> Mapping[str, float]:
        if self.control is None:
            return {}
        return {"entropy_coefficient": self.control.coefficient, "entropy": self.control.entropy}

    def remembering(self, memory: Mapping[str, float]) -> Self:
        if not memory:
            return self
        return replace(self, control=EntropyControl(memory["entropy_coefficient"], memory["entropy"]))

    @property
    def _control(self) -> EntropyControl:
        return self.control or EntropyControl(self.loss.entropy_coefficient, float("inf"))

    @property
    def _entropy_coefficient(self) -> float:
        target = self.loss.entropy_target
        return self.loss.entropy_coefficient if target is None else self._control.acting(target)

    # --- terms

    def _surrogate(self, batch: GroupBatch, logp_T: Tensor, advantage_T: Tensor, sums: MetricSums) -> Tensor:
        """What the configured policy gradient maximises, [T]."""
        loss, row_T, length_R = self.loss, batch.row_T, batch.length_R
        if loss.surrogate == "log_prob":
            return advantage_T * logp_T
        sampled_T = _required(batch.sampled_logp_T, "the sampling log-probs")
        logratio_T = logp_T - sampled_T
        if loss.surrogate == "clip" and loss.ratio == "completion":
            logratio_T = surrogates.mean_of_completion(logratio_T, row_T, length_R)
        ratio_T = ratio_of(logratio_T)
        self._watch(ratio_T.detach(), logratio_T.detach(), logp_T, sampled_T, advantage_T, sums)
        clips = {"clip_low": loss.clip_low, "clip_high": loss.clip_high}
        if loss.surrogate == "clip":
            return surrogates.clipped_surrogate(ratio_T, advantage_T, **clips, ratio_bound=loss.ratio_bound)
        if loss.surrogate == "cispo":
            return surrogates.capped_surrogate(logp_T, ratio_T, advantage_T, ratio_cap=loss.ratio_cap)
        if loss.surrogate == "sapo":
            taus = {"tau_positive": loss.tau_positive, "tau_negative": loss.tau_negative}
            return surrogates.soft_surrogate(ratio_T, advantage_T, **taus)
        if loss.surrogate == "gmpo":
            return surrogates.geometric_surrogate(logratio_T, advantage_T, row_T, length_R, **clips)
        if loss.surrogate == "dppo":
            return surrogates.masked_surrogate(logp_T, sampled_T, advantage_T, **clips)
        return surrogates.gamma_surrogate(
            logp_T,
            logratio_T,
            advantage_T,
            row_T,
            length_R,
            shape_positive=(loss.k_positive, loss.lambda_positive),
            shape_negative=(loss.k_negative, loss.lambda_negative),
        )

    def _weighted(
        self, loss_T: Tensor, batch: GroupBatch, scores: TokenScores, advantage_T: Tensor, sums: MetricSums
    ) -> Tensor:
        """The negated surrogate times the weights and masks that are switched on."""
        limit, cap = self.loss.off_policy_limit, self.loss.sampler_cap
        if self.loss.top_entropy < 1:
            if self.floor is None:
                raise ValueError("top_entropy is a share of a whole step: call for_step first")
            kept_T = above_floor(scores.entropy_T, self.floor)
            sums.add("masked/low_entropy", (1 - kept_T).sum(), batch.n_tokens)
            loss_T = loss_T * kept_T
        if limit is not None:
            logratio_T = scores.logp_T - _required(batch.sampled_logp_T, "the sampling log-probs")
            kept_T = near_policy(logratio_T, advantage_T, batch.row_T, batch.length_R, limit=limit)
            sums.add("masked/off_policy", (1 - kept_T).sum(), batch.n_tokens)
            loss_T = loss_T * kept_T
        if cap is not None:
            sampled_T = _required(batch.sampled_logp_T, "the sampling log-probs")
            weight_T = sampler_weight(sampled_T, _required(batch.drawn_logp_T, "the log-probs drawn with"), cap=cap)
            sums.add("sampler_weight", weight_T.sum(), batch.n_tokens)
            loss_T = loss_T * weight_T
        return loss_T

    def _with_kl(self, loss_T: Tensor, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        """The loss with its KL term, where it has one; the metric is k3, or the exact KL."""
        loss, logp_T = self.loss, scores.logp_T
        if loss.kl_form == "exact":
            kl_T = _required(scores.kl_T, "the KL over the vocabulary")
            sums.add("kl", kl_T.detach().sum(), batch.n_tokens)
            return loss_T + loss.kl_coefficient * kl_T
        reference_T = _required(batch.reference_logp_T, "the reference log-probs")
        sums.add("kl", kl_k3(logp_T.detach(), reference_T).sum(), batch.n_tokens)
        if loss.kl_place != "loss":
            return loss_T
        kl_T = kl_estimate(loss.kl_form, logp_T, reference_T)
        if loss.kl_ratio:
            kl_T = kl_T * ratio_of(logp_T - _required(batch.sampled_logp_T, "the sampling log-probs"))
        return loss_T + loss.kl_coefficient * kl_T

    def _watch(
        self,
        ratio_T: Tensor,
        logratio_T: Tensor,
        logp_T: Tensor,
        sampled_T: Tensor,
        advantage_T: Tensor,
        sums: MetricSums,
    ) -> None:
        """Means over tokens: the ratio, and the shares of tokens that are stopped, or capped."""
        loss, count = self.loss, len(ratio_T)
        sums.add("ratio", ratio_T.sum(), count)
        low, high, moved_T = 1 - loss.clip_low, 1 + loss.clip_high, ratio_T
        if loss.surrogate == "gmpo":
            low, high, moved_T = -loss.clip_low, loss.clip_high, logratio_T
        elif loss.surrogate == "dppo":
            low, high, moved_T = -loss.clip_low, loss.clip_high, surrogates.moved_probability(logp_T, sampled_T)
        below_T, above_T = surrogates.stopped(moved_T, advantage_T, low=low, high=high)
        if loss.surrogate == "cispo":
            below_T, above_T = torch.zeros_like(below_T), ratio_T > loss.ratio_cap
        if loss.surrogate in _CLIPPED:
            sums.add("clip_ratio/low", below_T.sum(), count)
            sums.add("clip_ratio/high", above_T.sum(), count)


def _required(value_T: Tensor | None, what: str) -> Tensor:
    if value_T is None:
        raise ValueError(f"this objective needs {what} of every completion")
    return value_T
