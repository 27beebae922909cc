"""Every preset learns: a policy small enough to be a table of logits earns more reward after some steps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from groupwise.batch import GroupBatch, pack, unpack_tokens
from groupwise.groups import Completion, Group
from groupwise.model.engine import TokenScores
from groupwise.observe.metrics import MetricSums
from groupwise.train.share import StepTotals
from grpo.advantages import ALONE
from grpo.config import GrpoLossSection
from grpo.credit import ScoredGroup, with_advantages
from grpo.objective import GrpoObjective
from grpo.presets import PRESETS, SOURCES

PLACES, VOCABULARY = 5, 8


def share_of_even(ids: tuple[int, ...]) -> float:
    return sum(i % 2 == 0 for i in ids) / len(ids)


def scores_of(table: Tensor, batch: GroupBatch) -> TokenScores:
    """The table's log-probs and entropies of every token: one row of logits for each place in a completion."""
    place_T = torch.cat([torch.arange(int(n)) for n in batch.length_R])
    logp_TV = table.log_softmax(-1)[place_T]
    entropy_T = -(logp_TV.exp() * logp_TV).sum(-1)
    return TokenScores(logp_TV.gather(1, batch.target_T[:, None]).squeeze(1), entropy_T)


def drawn(table: Tensor, generator: torch.Generator, source: str) -> list[ScoredGroup]:
    """Four groups of eight answers of one to five tokens, scored; given answers are half right."""
    groups: list[ScoredGroup] = []
    for number in range(4):
        answers: list[tuple[int, ...]] = []
        for _ in range(8):
            length = int(torch.randint(1, PLACES + 1, (), generator=generator))
            ids = torch.multinomial(table.detach().softmax(-1), 1, generator=generator)[:length, 0].tolist()
            answers.append(tuple(i - i % 2 for i in ids) if source == "data" and number % 2 else tuple(ids))
        scores = [1.0 if source == "data" else share_of_even(ids) for ids in answers]
        completions = tuple(
            Completion(token_ids=ids, finished=True, score=score) for ids, score in zip(answers, scores, strict=True)
        )
        steps = tuple(((len(ids) - 1, score),) for ids, score in zip(answers, scores, strict=True))
        group = Group(key=str(number), prompt_ids=(1,), completions=completions)
        groups.append(ScoredGroup(group, {}, (), (), 0, steps=steps))
    return groups


def with_logps(group: Group, policy: Tensor, reference: Tensor) -> Group:
    batch = pack([group])
    sampled = unpack_tokens(batch, scores_of(policy, batch).logp_T.detach())
    base = unpack_tokens(batch, scores_of(reference, batch).logp_T)
    return group.replace_completions(
        [replace(c, sampled_logp=s, reference_logp=b) for c, s, b in zip(group.completions, sampled, base, strict=True)]
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_the_reward_rises(preset: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(PLACES, VOCABULARY, generator=generator, dtype=torch.float64) * 0.3
    table = start.clone().requires_grad_()
    loss = GrpoLossSection.model_validate({"preset": preset})
    objective = GrpoObjective(loss, constant_length=PLACES)
    optimizer = torch.optim.Adam([table], lr=0.05)
    source = SOURCES.get(preset, "policy")
    for _ in range(25):
        answering = start if source == "base" else table
        scored = [one for one in drawn(answering, generator, source) if one.teaches(loss)]
        groups = [with_logps(one.group, answering, start) for one in scored if one.group is not None]
        groups = with_advantages(scored, groups, loss, {}, ALONE)
        for _ in range(2):  # the second update is off policy
            batch = pack(groups)
            total = objective.loss_sum(batch, scores_of(table, batch), MetricSums("cpu"))
            optimizer.zero_grad()
            (total / objective.denominator(StepTotals.of(groups))).backward()
            optimizer.step()
    right = [float(one.detach().softmax(-1)[:, ::2].sum(-1).mean()) for one in (start, table)]
    # Offline answers are only half right, or those of a base that stays as it is; what is sampled gets ever better.
    assert right[1] > right[0] + (0.1 if source != "policy" else 0.15), right
