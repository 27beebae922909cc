"""What some objectives must know of a whole step before its first micro-batch. Knows no loss and no configuration.

Both passes run without gradient over this process's share of the groups, and are then put together over processes, so
the result does not depend on how the step is cut.
Legend: T completion tokens, R completions, M all pairs of the step.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from dpo.losses.transport import matched_by_rank
from dpo.terms import Terms
from groupwise.batch import GroupBatch, pack, split_by_tokens
from groupwise.groups import Group, NotFinite, forward_tokens
from groupwise.model.engine import LogprobEngine
from groupwise.train.runtime import Runtime

PairValues = dict[str, tuple[float, ...]]


@torch.no_grad()
def matches_by_rank(
    groups: Sequence[Group], *, engine: LogprobEngine, runtime: Runtime, tokens_per_forward: int
) -> Mapping[str, PairValues]:
    """For every pair of the step, by the key of its group, the values of equal rank that AOT compares it with.

    A group that is in the step more than once has the mean over its places.
    """
    found: list[tuple[str, list[tuple[float, float, float, float]]]] = []
    for part in split_by_tokens(runtime.part(groups, forward_tokens), tokens_per_forward):
        batch = pack(part).to(engine.policy.device)
        terms = Terms(batch, engine.score(batch))
        names = ("chosen_logp_K", "rejected_logp_K", "chosen_logratio_K", "rejected_logratio_K")
        rows = torch.stack([terms[name].double() for name in names], dim=1).tolist()
        of_pair = batch.group_R[terms.chosen_K].tolist()
        for place, key in enumerate(batch.keys):
            found.append((key, [tuple(row) for row, group in zip(rows, of_pair, strict=True) if group == place]))
    # Sorted, so that processes and cuts of the step, which order groups differently, break ties alike.
    every = sorted(runtime.gather(found))
    chosen_logp_M, rejected_logp_M, chosen_M, rejected_M = (
        torch.tensor([row for _, rows in every for row in rows], dtype=torch.float64).reshape(-1, 4).unbind(dim=1)
    )
    margin_M = chosen_logp_M - rejected_logp_M
    reference_margin_M = margin_M - (chosen_M - rejected_M)
    matched = {
        "matched_reference_margin_K": matched_by_rank(margin_M, reference_margin_M),
        "matched_rejected_K": matched_by_rank(chosen_M, rejected_M),
        "matched_chosen_K": matched_by_rank(rejected_M, chosen_M),
    }
    lengths = [(key, len(rows)) for key, rows in every]
    return {name: _by_key(lengths, values_M.tolist()) for name, values_M in matched.items()}


@torch.no_grad()
def kl_baseline(groups: Sequence[Group], *, engine: LogprobEngine, runtime: Runtime, tokens_per_forward: int) -> float:
    """z0 of KTO, nats, never below 0: mean log-ratio of the policy to the reference on completions of other prompts.

    Every completion is put behind the prompt of the next group that has another one. A step with a single prompt has
    no such group; its z0 is 0.
    """
    mismatched = _mismatched(groups)
    sums_2 = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    logp_sum: Callable[[GroupBatch], torch.Tensor] = lambda batch: engine.score(batch).logp_T.double().sum()  # noqa: E731
    for part in split_by_tokens(runtime.part(mismatched, forward_tokens), tokens_per_forward):
        batch = pack(part).to(engine.policy.device)
        own = logp_sum(batch)
        with engine.policy.reference():
            theirs = logp_sum(batch)
        sums_2 += torch.stack([own - theirs, torch.full_like(own, batch.n_completions)])
    total, count = runtime.sum(sums_2).tolist()
    if not math.isfinite(total):
        raise NotFinite("log-probs of completions behind other prompts, which KTO compares with, are")
    return max(0.0, total / count) if count else 0.0


def _mismatched(groups: Sequence[Group]) -> list[Group]:
    """Each group's completions behind the prompt of the next group that asks something else."""
    pairs: list[Group] = []
    for place, group in enumerate(groups):
        others = (*groups[place + 1 :], *groups[:place])
        other = next((one.prompt_ids for one in others if one.prompt_ids != group.prompt_ids), None)
        if other is not None:
            pairs.append(Group(key=group.key, prompt_ids=other, completions=group.completions))
    return pairs


def _by_key(lengths: Sequence[tuple[str, int]], values: Sequence[float]) -> PairValues:
    """Values in the order of the groups, as one tuple for each key; the mean where a key comes again."""
    remaining = iter(values)
    found: dict[str, list[tuple[float, ...]]] = {}
    for key, length in lengths:
        found.setdefault(key, []).append(tuple(next(remaining) for _ in range(length)))
    return {
        key: tuple(sum(column) / len(column) for column in zip(*copies, strict=True)) for key, copies in found.items()
    }
