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
from groupwise.groups import Group, NotFinite
from groupwise.model.engine import LogprobEngine
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare

PairValues = dict[str, tuple[float, ...]]


@torch.no_grad()
def matches_by_rank(
    share: StepShare, *, engine: LogprobEngine, runtime: Runtime, tokens_per_forward: int
) -> Mapping[str, PairValues]:
    """For every pair of the step, by the key of its group, the values of equal rank that AOT compares it with.

    A group that is in the step more than once has the mean over its places.
    """
    found: list[tuple[str, list[tuple[float, float, float, float]]]] = []
    for part in split_by_tokens(share.groups, tokens_per_forward):
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
def kl_baseline(share: StepShare, *, engine: LogprobEngine, runtime: Runtime, tokens_per_forward: int) -> float:
    """z0 of KTO, nats, never below 0: mean log-ratio of the policy to the reference on completions of other prompts.

    Every completion is put behind the prompt of the next group that has another one. A step with a single prompt has
    no such group; its z0 is 0.
    """
    mismatched = _mismatched(share, runtime)
    sums_2 = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    logp_sum: Callable[[GroupBatch], torch.Tensor] = lambda batch: engine.score(batch).logp_T.double().sum()  # noqa: E731
    for part in split_by_tokens(mismatched, tokens_per_forward):
        batch = pack(part).to(engine.policy.device)
        own = logp_sum(batch)
        with engine.policy.reference():
            theirs = logp_sum(batch)
        sums_2 += torch.stack([own - theirs, torch.full_like(own, batch.n_completions)])
    total, count = runtime.sum(sums_2).tolist()
    if not math.isfinite(total):
        raise NotFinite("log-probs of completions behind other prompts, which KTO compares with, are")
    return max(0.0, total / count) if count else 0.0


def _mismatched(share: StepShare, runtime: Runtime) -> list[Group]:
    """This process's groups, each with its completions behind the prompt of the next one that asks something else."""
    asked = sorted(runtime.gather([(place, group.prompt_ids) for place, group in share.parts]))
    number = {place: i for i, (place, _) in enumerate(asked)}
    found: list[Group] = []
    for place, group in share.parts:
        after = (*asked[number[place] + 1 :], *asked[: number[place]])
        other = next((prompt_ids for _, prompt_ids in after if prompt_ids != group.prompt_ids), None)
        if other is not None:
            found.append(Group(key=group.key, prompt_ids=other, completions=group.completions))
    return found


def _by_key(lengths: Sequence[tuple[str, int]], values: Sequence[float]) -> PairValues:
    """Values in the order of the groups, as one tuple for each key; the mean where a key comes again."""
    remaining = iter(values)
    found: dict[str, list[tuple[float, ...]]] = {}
    for key, length in lengths:
        found.setdefault(key, []).append(tuple(next(remaining) for _ in range(length)))
    return {
        key: tuple(sum(column) / len(column) for column in zip(*copies, strict=True)) for key, copies in found.items()
    }
