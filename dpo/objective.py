"""The configured preference objective: computes the terms that its losses name, and weighs and sums what they return.

Knows no formula (dpo/losses), no loop and no data.
Legend: T completion tokens, R completions, K pairs.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dpo.loss_config import DpoLossSection, MixedObjective
from dpo.losses import LOSSES
from dpo.losses.rewards import REWARDS
from dpo.terms import OF_THE_STEP, Terms, terms_of
from dpo.whole_step import PairValues, kl_baseline, matches_by_rank
from groupwise.batch import GroupBatch
from groupwise.model.engine import Extra, LogprobEngine, TokenScores
from groupwise.observe.metrics import MetricSums
from groupwise.train.objective import Objective
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, StepTotals

PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
SHIFT, SHIFT_SAMPLE, KL_BASELINE = "bco/reward_shift", "bco/reward", "kto/kl_baseline"


@dataclass(frozen=True, slots=True)
class WholeStep:
    """What the losses were told of the step: z0 of KTO in nats, and the matches of AOT by term and group key."""

    kl_baseline: float = 0.0
    matched: Mapping[str, PairValues] = field(default_factory=dict[str, PairValues])
    totals: StepTotals | None = None


@dataclass(frozen=True, slots=True)
class DpoObjective(Objective):
    """Weighted mean losses of the configured objectives; each is a mean over all its pairs, rankings or completions.

    The implicit reward that is reported is that of the first objective. `reward_shift` is the running mean of BCO's
    rewards, which starts at 0, where policy and reference are equal.
    """

    parts: tuple[MixedObjective, ...]
    step: WholeStep = WholeStep()
    reward_shift: float = 0.0

    @classmethod
    def of(cls, loss: DpoLossSection) -> "DpoObjective":
        """The objective of a configuration.

        >>> DpoObjective.of(DpoLossSection(objective="simpo")).parts[0].keys
        {'beta': 2.5, 'gamma': 1.375}
        """
        return cls(loss.parts)

    @property
    def labelled(self) -> bool:
        """Whether it learns from single completions, labelled desirable or not."""
        return self.parts[0].entry.unit == "completion"

    @property
    def extras(self) -> Collection[Extra]:
        return ("collision",) if any("certainty" in term for term in self._named) else ()

    @property
    def metric_names(self) -> tuple[str, ...]:
        names = PAIR_METRICS
        if "reward_shift" in self._named:
            names += (SHIFT, SHIFT_SAMPLE)
        if "kl_baseline" in self._named:
            names += (KL_BASELINE,)
        return names + (tuple(f"loss/{part.objective}" for part in self.parts) if len(self.parts) > 1 else ())

    @property
    def _named(self) -> tuple[str, ...]:
        return tuple(term for part in self.parts for term in terms_of(LOSSES[part.objective]))

    def loss_sum(self, batch: GroupBatch, scores: TokenScores, sums: MetricSums) -> Tensor:
        """Weighted sum over the micro-batch; metrics are means over pairs or over labelled completions."""
        terms = self._terms(batch, scores)
        self._watch(terms, sums)
        total = scores.logp_T.new_zeros(())
        for part in self.parts:
            loss = terms.apply(LOSSES[part.objective], part.keys)
            if len(self.parts) > 1:
                sums.add(f"loss/{part.objective}", loss.sum(), loss.numel())
            total = total + part.weight * self._per_unit(part) * loss.sum()
        return total

    def denominator(self, totals: StepTotals) -> int:
        """What the first objective has one value of: pairs, groups or completions of the step."""
        return _count(self.parts[0], totals)

    @torch.no_grad()
    def margins(self, batch: GroupBatch, scores: TokenScores) -> Tensor:
        """Reward of the chosen less that of the rejected completion, [K], without gradient."""
        terms, part = self._terms(batch, scores), self.parts[0]
        reward = REWARDS[part.entry.reward]
        return terms.apply_to_side(reward, part.keys, "chosen") - terms.apply_to_side(reward, part.keys, "rejected")

    @torch.no_grad()
    def rewards(self, batch: GroupBatch, scores: TokenScores) -> Tensor:
        """Reward of every labelled completion, [R], without gradient."""
        part = self.parts[0]
        return self._terms(batch, scores).apply_to_side(REWARDS[part.entry.reward], part.keys, "all")

    @property
    def starts_at(self) -> float | None:
        """The loss where policy and reference are equal; None where that is not known without the data."""
        starts = [part.entry.start(part.keys) if part.entry.start is not None else None for part in self.parts]
        known = [start for start in starts if start is not None]
        if len(known) < len(starts):
            return None
        return sum(part.weight * start for part, start in zip(self.parts, known, strict=True))

    def for_step(
        self, share: StepShare, *, engine: LogprobEngine, runtime: Runtime, tokens_per_forward: int
    ) -> "DpoObjective":
        step = WholeStep(totals=share.totals)
        if "kl_baseline" in self._named:
            baseline = kl_baseline(share, engine=engine, runtime=runtime, tokens_per_forward=tokens_per_forward)
            step = replace(step, kl_baseline=baseline)
        if not set(OF_THE_STEP).isdisjoint(self._named):
            matched = matches_by_rank(share, engine=engine, runtime=runtime, tokens_per_forward=tokens_per_forward)
            step = replace(step, matched=matched)
        return replace(self, step=step)

    def after_step(self, values: Mapping[str, float]) -> "DpoObjective":
        if SHIFT_SAMPLE not in values:
            return self
        decay = next(part.keys["shift_decay"] for part in self.parts if "shift_decay" in part.keys)
        return replace(self, reward_shift=decay * self.reward_shift + (1 - decay) * values[SHIFT_SAMPLE])

    def memory(self) -> Mapping[str, float]:
        return {"reward_shift": self.reward_shift} if "reward_shift" in self._named else {}

    def remembering(self, memory: Mapping[str, float]) -> "DpoObjective":
        return replace(self, reward_shift=memory.get("reward_shift", 0.0))

    def _terms(self, batch: GroupBatch, scores: TokenScores) -> Terms:
        numbers = {"kl_baseline": self.step.kl_baseline, "reward_shift": self.reward_shift}
        return Terms(batch, scores, numbers=numbers, matched=self.step.matched)

    def _per_unit(self, part: MixedObjective) -> float:
        """What makes a sum that is divided by the first objective's count a mean over this one's."""
        if part.entry.unit == self.parts[0].entry.unit:
            return 1.0
        if self.step.totals is None:
            raise ValueError("a mixture over pairs and rankings needs for_step")
        return _count(self.parts[0], self.step.totals) / _count(part, self.step.totals)

    def _watch(self, terms: Terms, sums: MetricSums) -> None:
        with torch.no_grad():
            if self.labelled:
                self._watch_labels(terms, sums)
            else:
                self._watch_pairs(terms, sums)
            for part in self.parts:
                if "reward_shift" in terms_of(LOSSES[part.objective]):
                    self._watch_shift(part, terms, sums)
        if "kl_baseline" in self._named:
            sums.add(KL_BASELINE, self.step.kl_baseline, 1)

    def _watch_pairs(self, terms: Terms, sums: MetricSums) -> None:
        part = self.parts[0]
        reward = REWARDS[part.entry.reward]
        chosen_K, rejected_K = (terms.apply_to_side(reward, part.keys, side) for side in ("chosen", "rejected"))
        margin_K = chosen_K - rejected_K
        logps = (terms["chosen_logp_K"], terms["rejected_logp_K"])
        values = (chosen_K, rejected_K, margin_K, ranked_right(margin_K), *logps)
        for name, value_K in zip(PAIR_METRICS, values, strict=True):
            sums.add(name, value_K.sum(), len(value_K))

    def _watch_labels(self, terms: Terms, sums: MetricSums) -> None:
        """Desirable completions are the chosen, the others the rejected; a margin is how far a reward is on its label's
        side of what the loss compares it with.
        """
        part, desirable_R = self.parts[0], terms["desirable_R"]
        reward_R = terms.apply_to_side(REWARDS[part.entry.reward], part.keys, "all")
        for name, of_R in (("chosen", desirable_R), ("rejected", ~desirable_R)):
            sums.add(f"rewards/{name}", reward_R[of_R].sum(), of_R.sum())
            sums.add(f"logps/{name}", terms["logp_R"][of_R].sum(), of_R.sum())
        compared = part.keys["beta"] * self.step.kl_baseline if part.objective == "kto" else self.reward_shift
        margin_R = torch.where(desirable_R, reward_R - compared, compared - reward_R)
        for name, value_R in (("margins", margin_R), ("accuracies", ranked_right(margin_R))):
            sums.add(f"rewards/{name}", value_R.sum(), len(value_R))

    def _watch_shift(self, part: MixedObjective, terms: Terms, sums: MetricSums) -> None:
        """The shift in use, and the rewards that move it."""
        reward = REWARDS[part.entry.reward]
        sums.add(SHIFT, self.reward_shift, 1)
        for side in ("all",) if self.labelled else ("chosen", "rejected"):
            reward_N = terms.apply_to_side(reward, part.keys, side)
            sums.add(SHIFT_SAMPLE, reward_N.sum(), len(reward_N))


def ranked_right(margin_N: Tensor) -> Tensor:
    """1 where a margin is above 0, one half where it is 0, [N].

    >>> ranked_right(torch.tensor([2.0, 0.0, -1.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    return (margin_N > 0).float() + (margin_N == 0).float() / 2


def _count(part: MixedObjective, totals: StepTotals) -> int:
    return {"pair": totals.pairs, "ranking": totals.groups, "completion": totals.completions}[part.entry.unit]
