"""What was scored to an advantage for every token, as configured. Knows no formula (grpo/advantages.py) and no loss.

Legend: T tokens of one completion.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from groupwise.groups import Group, is_informative
from grpo.advantages import Batch, Steps, advantages_of_each, return_advantages, step_advantages
from grpo.config import GrpoLossSection
from grpo.losses.kl import kl_estimate


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group as it was scored: `group` holds the completions that have a score, the rest is for the records.

    `steps` are the weighted rewards of the steps of the completions in `group`, an outcome being a step that ends with
    the last token; `each` their unweighted scores by reward, of the rewards that have a weight.
    """

    group: Group | None
    by_reward: Mapping[str, tuple[float | None, ...]]
    lengths: tuple[int, ...]
    finished: tuple[bool, ...]
    faults: int
    steps: tuple[Steps, ...] = ()
    each: Mapping[str, tuple[float | None, ...]] | None = None

    @property
    def skipped(self) -> int:
        """Completions without a score."""
        return len(self.lengths) - (0 if self.group is None else len(self.group.completions))

    @property
    def is_flat(self) -> bool:
        """Whether its scores are all equal, or it has none."""
        return self.group is None or not is_informative(self.group)

    def teaches(self, loss: GrpoLossSection) -> bool:
        """Whether an advantage of it can differ from 0."""
        if self.group is None:
            return False
        values = [reward for own in self.steps for _, reward in own]
        if loss.kl_in_reward or loss.advantage_baseline == "batch_mean":
            return True
        if loss.advantage_baseline == "none":
            return any(values)
        if loss.several_rewards == "normalise_each":
            return any(len(set(own) - {None}) > 1 for own in (self.each or {}).values())
        return len(set(values)) > 1


def with_outcomes(one: ScoredGroup, group: Group) -> ScoredGroup:
    """The same group as another judge scored it, completion by completion."""
    outcomes = tuple(((len(c.token_ids) - 1, c.score),) for c in group.completions)
    return replace(one, group=group, steps=outcomes)


def with_advantages(
    scored: Sequence[ScoredGroup],
    groups: Sequence[Group],
    loss: GrpoLossSection,
    weights: Mapping[str, float],
    batch: Batch,
) -> list[Group]:
    """Every completion of `groups`, which are those of `scored`, with the advantage of each of its tokens.

    `batch` has the figures over all groups, where others hold groups of the same rollout.
    """
    values = _advantages(scored, groups, loss, weights, batch)
    return [
        group.replace_completions(
            [
                replace(completion, advantage=torch.tensor(value_T, dtype=torch.float32))
                for completion, value_T in zip(group.completions, own, strict=True)
            ]
        )
        for group, own in zip(groups, values, strict=True)
    ]


def _advantages(
    scored: Sequence[ScoredGroup],
    groups: Sequence[Group],
    loss: GrpoLossSection,
    weights: Mapping[str, float],
    batch: Batch,
) -> list[list[list[float]]]:
    lengths = [[len(completion.token_ids) for completion in group.completions] for group in groups]
    scale, ddof, baseline = loss.advantage_scale, loss.std_ddof, loss.advantage_baseline
    if loss.several_rewards == "normalise_each":
        wanted = {name: weight for name, weight in weights.items() if weight}
        tables = [[list((one.each or {})[name]) for name in wanted] for one in scored]
        found = advantages_of_each(tables, list(wanted.values()), scale=scale, ddof=ddof, batch=batch)
        return [
            [[value] * count for value, count in zip(*both, strict=True)] for both in zip(found, lengths, strict=True)
        ]
    steps = [list(one.steps) for one in scored]
    if not loss.kl_in_reward:
        return step_advantages(steps, lengths, scale=scale, baseline=baseline, ddof=ddof, batch=batch)
    penalties = [_penalties(group, loss) for group in groups]
    if loss.kl_place == "reward_per_token":
        return return_advantages(steps, penalties, scale=scale, baseline=baseline, ddof=ddof, batch=batch)
    charged = [
        [_less_at_the_end(own, math.fsum(costs)) for own, costs in zip(*both, strict=True)]
        for both in zip(steps, penalties, strict=True)
    ]
    return step_advantages(charged, lengths, scale=scale, baseline=baseline, ddof=ddof, batch=batch)


def _penalties(group: Group, loss: GrpoLossSection) -> list[list[float]]:
    """beta times the KL estimate of every token of every completion, under the policy that wrote it."""
    costs: list[list[float]] = []
    for completion in group.completions:
        sampled_T, reference_T = completion.sampled_logp, completion.reference_logp
        if sampled_T is None or reference_T is None or loss.kl_form == "exact":
            raise ValueError(f"{group.key}: a KL in the reward needs sampling and reference log-probs")
        costs.append((loss.kl_coefficient * kl_estimate(loss.kl_form, sampled_T, reference_T)).tolist())
    return costs


def _less_at_the_end(steps: Steps, cost: float) -> Steps:
    """The same steps with the last one's reward reduced."""
    end, reward = steps[-1]
    return [*steps[:-1], (end, reward - cost)]
