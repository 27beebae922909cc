"""The reward model that learns on the way: it reads whole answers, learns an order, forgets nothing over a restart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from groupwise.groups import Group
from groupwise.sections import ModelSection
from groupwise.train.runtime import Runtime
from grpo.config import RewardModelSection
from grpo.reward_model import RewardModel, bradley_terry_loss
from tests.conftest import random_groups

TOKENS = 200


def make(tiny_model: Path, **options: object) -> RewardModel:
    section = RewardModelSection.model_validate({"learning_rate": 2e-2, "groups_per_step": 4, **options})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return RewardModel(section, ModelSection(path=str(tiny_model)), tokenizer=tokenizer, seed=0, runtime=Runtime())


def ordered(count: int, *, seed: int) -> list[Group]:
    """Groups in which the answer that ends in token 7 is better than one that ends in 8."""
    groups = random_groups(count, vocabulary=290, seed=seed)
    return [
        group.replace_completions(
            [
                replace(c, token_ids=(*c.token_ids[:-1], 7 if j == 0 else 8), score=1.0 - j)
                for j, c in enumerate(group.completions)
            ]
        )
        for group in groups
    ]


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    reward_R = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64, requires_grad=True)
    pairs_K2 = torch.tensor([[0, 1], [2, 0]])
    by_hand = torch.log(1 + torch.exp(torch.tensor([-0.5, 3.0], dtype=torch.float64)))
    torch.testing.assert_close(bradley_terry_loss(reward_R, pairs_K2), by_hand)
    torch.testing.assert_close(bradley_terry_loss(reward_R + 5.0, pairs_K2), by_hand)
    assert torch.autograd.gradcheck(lambda r: bradley_terry_loss(r, pairs_K2), reward_R)


def test_an_order_that_only_the_last_token_tells_is_learned(tiny_model: Path) -> None:
    """The last token of an answer goes through no network in training; here it must."""
    model = make(tiny_model, epochs=6)
    first = model.update(ordered(24, seed=1), tokens_per_forward=TOKENS)
    assert first is not None and first.accuracy == 0.5, "before it saw a pair all answers are worth the same"
    second = model.update(ordered(24, seed=2), tokens_per_forward=TOKENS)
    assert second is not None and second.accuracy > 0.9 and second.loss < 0.4
    assert (second.groups, second.pairs, second.replayed) == (24, 24, 3), "3 of 27 are about 10 %"


def test_rewards_do_not_depend_on_the_row_they_are_in(tiny_model: Path) -> None:
    model = make(tiny_model)
    groups = ordered(9, seed=3)
    model.update(groups, tokens_per_forward=TOKENS)
    alone = [c.score for group in groups for c in model.score([group], tokens_per_forward=TOKENS)[0].completions]
    together = [c.score for group in model.score(groups, tokens_per_forward=10_000) for c in group.completions]
    assert alone == pytest.approx(together, abs=1e-5)
    assert len(set(alone)) == len(alone)


def test_a_restart_changes_no_byte(tiny_model: Path, tmp_path: Path) -> None:
    straight, stopped, continued = (make(tiny_model, history=10) for _ in range(3))
    for model in (straight, stopped):
        model.update(ordered(12, seed=4), tokens_per_forward=TOKENS)
    (tmp_path / "a").mkdir()
    stopped.save(tmp_path / "a")
    continued.restore(tmp_path / "a")
    for name, model in (("b", straight), ("c", continued)):
        model.update(ordered(12, seed=5), tokens_per_forward=TOKENS)
        (tmp_path / name).mkdir()
        model.save(tmp_path / name)
    for file in (tmp_path / "b").iterdir():
        assert file.read_bytes() == (tmp_path / "c" / file.name).read_bytes(), file.name


def test_groups_without_an_order_teach_nothing(tiny_model: Path) -> None:
    groups = [
        group.replace_completions([replace(c, score=1.0) for c in group.completions])
        for group in random_groups(3, vocabulary=290)
    ]
    assert make(tiny_model).update(groups, tokens_per_forward=TOKENS) is None
