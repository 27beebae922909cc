"""Agreement with TRL 1.16.0 on random batches, for every loss of its GRPOTrainer; runs where `trl` is installed.

Its `_compute_loss` is called on an object that has only what it reads; what is compared is the number it minimises.
docs/objectives.md says where the two mean different things by one name.
"""

import importlib
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from groupwise.batch import GroupBatch, pack
from groupwise.groups import Completion, Group
from groupwise.model.engine import TokenScores
from groupwise.observe.metrics import MetricSums
from groupwise.train.share import StepTotals
from grpo.config import GrpoLossSection
from grpo.losses.masks import entropy_floor
from grpo.objective import GrpoObjective

trl: Any = pytest.importorskip("trl")
if trl.__version__ != "1.16.0":
    pytest.skip("these numbers are those of trl 1.16.0", allow_module_level=True)

TRAINERS = {"grpo": trl.GRPOTrainer, "gmpo": importlib.import_module("trl.experimental.gmpo").GMPOTrainer}
LENGTHS = (3, 1, 5, 2)
CASES: dict[str, tuple[dict[str, object], dict[str, Any]]] = {
    # what is ours -> what is theirs
    "grpo": ({"kl_coefficient": 0.0}, {"loss_type": "grpo"}),
    "grpo, KL k3": ({"kl_coefficient": 0.3}, {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False}),
    "grpo, KL k3 x ratio": ({"kl_coefficient": 0.3, "kl_ratio": True}, {"loss_type": "grpo", "beta": 0.3}),
    "two-sided": ({"kl_coefficient": 0.0, "ratio_bound": 1.3}, {"loss_type": "grpo", "delta": 1.3}),
    "off-policy mask": (
        {"kl_coefficient": 0.0, "off_policy_limit": 0.05},
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
    ),
    "top entropy": ({"preset": "dapo", "top_entropy": 0.35}, {"loss_type": "dapo", "top_entropy_quantile": 0.35}),
    "dapo": ({"preset": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "bnpo": ({"preset": "bnpo"}, {"loss_type": "bnpo"}),
    "dr_grpo": ({"preset": "dr_grpo"}, {"loss_type": "dr_grpo"}),
    "gspo": (
        {"preset": "gspo"},
        {"loss_type": "grpo", "level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "luspo": (
        {"preset": "luspo"},
        {"loss_type": "luspo", "level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "cispo": ({"preset": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "sapo": ({"preset": "sapo"}, {"loss_type": "sapo"}),
    "vespo": ({"preset": "vespo"}, {"loss_type": "vespo"}),
    "gmpo": ({"preset": "gmpo"}, {"trainer": "gmpo", "epsilon_low": 0.4, "epsilon_high": 0.4}),
    "gmpo, KL": (
        {"preset": "gmpo", "kl_coefficient": 0.3},
        {"trainer": "gmpo", "beta": 0.3, "epsilon_low": 0.4, "epsilon_high": 0.4},
    ),
    "entropy bonus": ({"preset": "bnpo", "entropy_coefficient": 0.2}, {"loss_type": "bnpo", "entropy_coef": 0.2}),
}


@pytest.fixture
def batch() -> GroupBatch:
    generator = torch.Generator().manual_seed(7)

    def draw(length: int, spread: float = 1.0) -> Tensor:
        return torch.randn(length, generator=generator, dtype=torch.float64) * spread

    completions: list[Completion] = []
    for place, length in enumerate(LENGTHS):
        sampled = -draw(length).abs() - 0.1
        completions.append(
            Completion(
                token_ids=tuple(range(1, length + 1)),
                finished=True,
                score=0.0,
                sampled_logp=sampled,
                reference_logp=sampled + draw(length, 0.2),
                advantage=torch.full((length,), (1.0, -0.6, 0.4, -0.8)[place], dtype=torch.float64),
            )
        )
    return pack([Group(key="x", prompt_ids=(1,), completions=tuple(completions))])


def padded(values_T: Tensor) -> Tensor:
    rows = values_T.split(list(LENGTHS))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def theirs(batch: GroupBatch, logp_T: Tensor, entropy_T: Tensor, options: dict[str, Any]) -> Tensor:
    """The peer's loss of one batch, which is a whole step on one process."""
    given = dict(options)
    code = TRAINERS[given.pop("trainer", "grpo")]
    high, low = given.pop("epsilon_high", 0.2), given.pop("epsilon_low", 0.2)
    trainer: Any = SimpleNamespace(
        loss_type=given.pop("loss_type", None), importance_sampling_level=given.pop("level", "token"),
        beta=given.pop("beta", 0.0), epsilon_low=low, epsilon_high=high,
        off_policy_mask_threshold=given.pop("off_policy_mask_threshold", None),
        top_entropy_quantile=given.pop("top_entropy_quantile", 1.0), use_vllm=False, max_completion_length=10,
        aux_loss_enabled=False, current_gradient_accumulation_steps=1,
        entropy_coef=given.get("entropy_coef", 0.0), _entropy_bonus_enabled=given.pop("entropy_coef", 0.0) > 0,
        use_adaptive_entropy=False, model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=given.pop("delta", None), use_bias_correction_kl=given.pop("use_bias_correction_kl", True),
            sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, steps_per_generation=1,
            vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
        ),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda t: t, pad_across_processes=lambda t, **_: t, sync_gradients=True,
            reduce=lambda t, **_: t,
        ),
        _metrics={"train": defaultdict(list)},
        get_off_policy_mask=trl.GRPOTrainer.get_off_policy_mask, get_gamma_weights=trl.GRPOTrainer.get_gamma_weights,
    )  # fmt: skip
    assert not given, given
    trainer.get_high_entropy_mask = lambda *args: trl.GRPOTrainer.get_high_entropy_mask(trainer, *args)
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (padded(logp_T), padded(entropy_T), None)
    mask = padded(torch.ones(sum(LENGTHS), dtype=torch.long))
    assert batch.sampled_logp_T is not None and batch.reference_logp_T is not None and batch.advantage_T is not None
    inputs = {
        "prompt_ids": torch.ones(4, 1, dtype=torch.long), "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": mask, "completion_mask": mask, "advantages": padded(batch.advantage_T)[:, 0],
        "old_per_token_logps": padded(batch.sampled_logp_T), "ref_per_token_logps": padded(batch.reference_logp_T),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return code._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_peer(batch: GroupBatch, name: str) -> None:
    ours, peer = CASES[name]
    loss = GrpoLossSection.model_validate(ours)
    generator = torch.Generator().manual_seed(1)
    assert batch.sampled_logp_T is not None
    logp_T = batch.sampled_logp_T + 0.3 * torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)
    entropy_T = torch.rand(sum(LENGTHS), generator=generator).double()  # the peer compares in float32
    floor = entropy_floor(entropy_T.tolist(), loss.top_entropy) if loss.top_entropy < 1 else None
    if loss.top_entropy < 1:  # the peer's clip of this case
        loss = GrpoLossSection.model_validate({**ours, "clip_high": 0.2})
    objective = GrpoObjective(loss, constant_length=10, floor=floor)
    live, other = logp_T.clone().requires_grad_(), logp_T.clone().requires_grad_()
    totals = StepTotals(groups=1, completions=4, tokens=sum(LENGTHS), prompt_tokens=1, pairs=0)
    found = objective.loss_sum(batch, TokenScores(live, entropy_T), MetricSums("cpu")) / objective.denominator(totals)
    expected = theirs(batch, other, entropy_T, peer)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    (gradient,) = torch.autograd.grad(found, live)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, other)[0], atol=1e-6, rtol=0)


def test_rloo_has_the_peers_gradient_where_the_policy_is_the_sampler(batch: GroupBatch) -> None:
    """There a clipped ratio and log pi have one gradient; off policy theirs clips the product of ratios, ours none."""
    assert batch.sampled_logp_T is not None and batch.advantage_T is not None
    objective = GrpoObjective(GrpoLossSection.model_validate({"preset": "rloo"}), constant_length=10)
    live, other = (batch.sampled_logp_T.clone().requires_grad_() for _ in range(2))
    totals = StepTotals(groups=1, completions=4, tokens=sum(LENGTHS), prompt_tokens=1, pairs=0)
    scores = TokenScores(live, torch.zeros_like(live))
    ours = objective.loss_sum(batch, scores, MetricSums("cpu")) / objective.denominator(totals)
    mask = padded(torch.ones(sum(LENGTHS), dtype=torch.long))
    trainer = SimpleNamespace(
        epsilon_low=0.2, epsilon_high=0.2, aux_loss_enabled=False, model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda t: t, reduce=lambda t, **_: t), _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (padded(other), padded(torch.zeros(sum(LENGTHS))), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.ones(4, 1, dtype=torch.long), "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": mask, "completion_mask": mask, "advantages": padded(batch.advantage_T)[:, 0],
        "old_logps": padded(batch.sampled_logp_T).sum(1),
    }  # fmt: skip
    theirs_ = trl.RLOOTrainer._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(ours, live)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs_, other)[0], atol=1e-6, rtol=0)
