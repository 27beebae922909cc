"""A reference that is moved: by how much, and back after a restart; the base stays where it was."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from groupwise.batch import pack
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from tests.conftest import random_groups
from tests.families import VOCABULARY
from tests.model.test_engine import make_policy

BATCH = pack(random_groups(2, vocabulary=VOCABULARY, seed=4))


def logp(engine: LogprobEngine) -> Tensor:
    with torch.no_grad():
        return engine.score(BATCH).logp_T


def train_a_little(policy: Policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.05)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_copied_reference_is_the_policy_as_it_was(lora: bool) -> None:
    policy = make_policy("llama", lora=lora)
    engine = LogprobEngine(policy)
    with policy.base():
        base_T = logp(engine)
    train_a_little(policy, seed=1)
    then_T = logp(engine)
    policy.move_reference(1.0)
    train_a_little(policy, seed=2)
    now_T = logp(engine)
    assert not torch.allclose(then_T, now_T, atol=1e-3)
    with policy.reference():
        assert torch.equal(logp(engine), then_T)
        with policy.reference():
            assert torch.equal(logp(engine), then_T)
        with policy.base():
            assert torch.allclose(logp(engine), base_T, atol=1e-12)
        assert torch.equal(logp(engine), then_T)
    assert torch.equal(logp(engine), now_T)
    with policy.base():
        assert torch.allclose(logp(engine), base_T, atol=1e-12)


def test_an_averaged_reference_lies_between_the_weights() -> None:
    """Two moves by 1/4 towards fixed weights: 9/16 of the base and 7/16 of the policy are left."""
    policy = make_policy("llama", lora=False)
    base = {name: p.detach().clone() for name, p in policy.trainable().items()}
    train_a_little(policy, seed=3)
    policy.move_reference(0.25)
    policy.move_reference(0.25)
    trained = {name: p.detach().clone() for name, p in policy.trainable().items()}
    with policy.reference():
        for name, p in policy.trainable().items():
            torch.testing.assert_close(p.detach(), 9 / 16 * base[name] + 7 / 16 * trained[name])


def test_an_averaged_adapter_starts_from_no_effect() -> None:
    """The base is an adapter whose B is 0, so after one move B is the mixed share of the policy's, A the policy's."""
    policy = make_policy("llama", lora=True)
    train_a_little(policy, seed=5)
    trained = {name: p.detach().clone() for name, p in policy.trainable().items()}
    policy.move_reference(0.25)
    with policy.reference():
        for name, p in policy.trainable().items():
            torch.testing.assert_close(p.detach(), trained[name] * (0.25 if ".lora_B." in name else 1.0))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_moved_reference_survives_a_restart(lora: bool, tmp_path: Path) -> None:
    first, second = make_policy("gpt2", lora=lora), make_policy("gpt2", lora=lora)
    first.save_reference(tmp_path)
    assert not list(tmp_path.iterdir())
    train_a_little(first, seed=6)
    first.move_reference(0.6)
    first.save_reference(tmp_path)
    second.restore_reference(tmp_path)
    engines = LogprobEngine(first), LogprobEngine(second)
    with first.reference(), second.reference():
        assert torch.equal(logp(engines[0]), logp(engines[1]))
