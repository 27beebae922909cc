"""Preference losses against the code of TRL 1.16.0, on random batches: `make test-peer`."""

import importlib
import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo.losses import LOSSES
from dpo.losses.transport import matched_by_rank
from dpo.terms import terms_of

trl: Any = pytest.importorskip("trl")

PAIRS, TOKENS = 5, 9
SAME = {  # ours: (theirs, our keys, their settings)
    "sigmoid": ("sigmoid", {"beta": 0.3}, {}),
    "robust": ("robust", {"beta": 0.3, "label_smoothing": 0.2}, {"label_smoothing": 0.2}),
    "hinge": ("hinge", {"beta": 0.3}, {}),
    "exo": ("exo_pair", {"beta": 0.3, "label_smoothing": 0.05}, {"label_smoothing": 0.05}),
    "nca": ("nca_pair", {"beta": 0.3}, {}),
    "bco": ("bco_pair", {"beta": 0.3}, {}),
    "sppo": ("sppo_hard", {"beta": 0.3}, {}),
    "apo_zero": ("apo_zero", {"beta": 0.3}, {}),
    "apo_down": ("apo_down", {"beta": 0.3}, {}),
    "discopop": ("discopop", {"beta": 0.3, "tau": 0.05}, {}),
    "aot": ("aot", {"beta": 0.3, "label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    "aot_unpaired": ("aot_unpaired", {"beta": 0.3, "label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    "f_forward_kl": ("sigmoid", {"beta": 0.3}, {"f_divergence_type": "forward_kl"}),
    "f_js": ("sigmoid", {"beta": 0.3}, {"f_divergence_type": "js_divergence"}),
    "f_alpha": ("sigmoid", {"beta": 0.3, "divergence_alpha": 0.4}, {"f_divergence_type": "alpha_divergence",
                "f_alpha_divergence_coef": 0.4}),
    "ld_dpo": ("sigmoid", {"beta": 0.3, "tail_weight": 0.4}, {"ld_alpha": 0.4}),
    "wpo": ("sigmoid", {"beta": 0.3}, {"use_weighting": True}),
    "ipo_per_token": ("ipo", {"beta": 0.3}, {}),
    "length_normalised": ("sigmoid_norm", {"beta": 0.3}, {}),
}  # fmt: skip


class Batch:
    """Random per-token log-probs of five pairs; completions fill the row from its second token on."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(2, TOKENS, (2 * PAIRS,), generator=generator)
        self.mask = (torch.arange(TOKENS) < self.lengths[:, None]).float()
        self.logp = -torch.rand(2 * PAIRS, TOKENS, generator=generator) * self.mask
        self.reference = -torch.rand(2 * PAIRS, TOKENS, generator=generator) * self.mask
        self.collision = -torch.rand(2 * PAIRS, TOKENS, generator=generator)
        self.ratio = self.logp - self.reference

    def sides(self, name: str, values: Tensor) -> dict[str, Tensor]:
        chosen, rejected = values.chunk(2)
        return {f"chosen_{name}_K": chosen, f"rejected_{name}_K": rejected}

    def terms(self) -> dict[str, Tensor]:
        """What our losses name."""
        shared = torch.minimum(*self.lengths.chunk(2)).repeat(2)
        head = (torch.arange(TOKENS) < shared[:, None]).float()
        found = {
            **self.sides("logp", self.logp.sum(1)), **self.sides("logratio", self.ratio.sum(1)),
            **self.sides("length", self.lengths.float()), **self.sides("head_logratio", (self.ratio * head).sum(1)),
            **self.sides("tail_logratio", (self.ratio * (1 - head)).sum(1)),
            **self.sides("certainty", ((self.logp - self.collision) * self.mask).sum(1) / self.lengths),
            "reward_shift": torch.tensor(0.0),
        }  # fmt: skip
        chosen, rejected = self.logp.sum(1).chunk(2)
        chosen_reference, rejected_reference = self.reference.sum(1).chunk(2)
        found["matched_reference_margin_K"] = matched_by_rank(chosen - rejected, chosen_reference - rejected_reference)
        ratios = (found["chosen_logratio_K"], found["rejected_logratio_K"])
        found["matched_rejected_K"], found["matched_chosen_K"] = (
            matched_by_rank(*ratios),
            matched_by_rank(*ratios[::-1]),
        )
        return found

    def ours(self, name: str, keys: dict[str, float]) -> float:
        terms = self.terms()
        return LOSSES[name](*(terms[term] for term in terms_of(LOSSES[name])), **keys).mean().item()

    def theirs(self, loss: str, settings: dict[str, Any], beta: float) -> float:
        """`DPOTrainer._compute_loss` itself, with a model that returns this batch."""
        outputs = SimpleNamespace(
            log_probs=self.logp, log_sum_sq_probs=self.collision, entropy=self.logp, mean_logits=self.logp,
            is_top1=self.mask.bool(),
        )  # fmt: skip
        reference = self.reference
        if "ld_alpha" in settings:
            shared = torch.minimum(*self.lengths.chunk(2)).repeat(2)
            head = (torch.arange(TOKENS) < shared[:, None]).float()
            reference = reference * (head + settings["ld_alpha"] * (1 - head))
        chosen, rejected = reference.sum(1).chunk(2)
        whole_mask = torch.cat([torch.zeros(2 * PAIRS, 1), self.mask], dim=1)
        inputs = {
            "input_ids": torch.zeros(2 * PAIRS, TOKENS + 1, dtype=torch.long), "completion_mask": whole_mask,
            "attention_mask": whole_mask, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
        }  # fmt: skip
        same = lambda value: value  # noqa: E731
        trainer = SimpleNamespace(**{
            "model": SimpleNamespace(training=True), "aux_loss_enabled": False, "ld_alpha": None, "beta": beta,
            "precompute_ref_logps": True, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
            "loss_types": [loss], "loss_weights": [1.0], "label_smoothing": 0.0, "use_weighting": False,
            "args": SimpleNamespace(discopop_tau=0.05), "_metrics": {"train": defaultdict(list)},
            "accelerator": SimpleNamespace(gather=same, gather_for_metrics=same, device=torch.device("cpu")),
            "_total_train_tokens": 0, "_tp_size": 1, **settings,
        })  # fmt: skip
        trainer.accelerator.device = torch.device("cpu")
        trainer.model.device = torch.device("cpu")
        # The trainer asks the device of its accelerator and of nothing else.
        return trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False).item()  # pyright: ignore


@pytest.mark.parametrize("name", SAME)
def test_value_is_the_peers(name: str) -> None:
    theirs, keys, settings = SAME[name]
    for seed in range(5):
        batch = Batch(seed)
        expected = batch.theirs(theirs, settings, keys["beta"])
        assert batch.ours(name, keys) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_where_values_differ_on_purpose() -> None:
    """Their `sigmoid` ignores label smoothing; their `sft` is a mean over all tokens, ours over completions."""
    batch = Batch(0)
    plain = batch.theirs("sigmoid", {"label_smoothing": 0.3}, 0.3)
    assert plain == pytest.approx(batch.ours("sigmoid", {"beta": 0.3}), rel=1e-6)
    assert abs(plain - batch.ours("sigmoid", {"beta": 0.3, "label_smoothing": 0.3})) > 1e-3
    chosen, lengths = batch.logp[:PAIRS].sum(), batch.lengths[:PAIRS].sum()
    assert batch.theirs("sft", {}, 0.3) == pytest.approx((-chosen / lengths).item(), rel=1e-6)
    assert batch.ours("sft", {}) == pytest.approx((-chosen / PAIRS).item(), rel=1e-6)


@pytest.mark.parametrize(("name", "theirs"), [("kto", "kto"), ("apo_zero_unpaired", "apo_zero_unpaired")])
@pytest.mark.parametrize("kl_gap", [0.4, -0.4])
def test_losses_of_labels_are_the_peers(name: str, theirs: str, kl_gap: float) -> None:
    """`KTOTrainer._compute_loss` itself, given the log-probs behind other prompts; a negative z0 counts as 0."""
    batch = Batch(2)
    rows = 2 * PAIRS
    desirable_R = torch.arange(rows) % 3 == 0
    reference_kl_R = torch.linspace(-9, -4, rows)
    mask = torch.cat([torch.zeros(rows, 1), batch.mask], dim=1)
    inputs = {
        "input_ids": torch.zeros(rows, TOKENS + 1, dtype=torch.long), "completion_mask": mask, "attention_mask": mask,
        "label": desirable_R, "ref_logps": batch.reference.sum(1), "ref_KL_logps": reference_kl_R,
    }  # fmt: skip
    outputs = SimpleNamespace(log_probs=batch.logp, entropy=batch.logp, mean_logits=batch.logp)
    same = lambda value: value  # noqa: E731

    class Model:
        training = True

        def __call__(self, **_: Any) -> SimpleNamespace:
            return outputs

    trainer = SimpleNamespace(
        model=Model(), aux_loss_enabled=False, precompute_ref_logps=True, calculate_KL=name == "kto", loss_type=theirs,
        beta=0.3, desirable_weight=1.5, undesirable_weight=0.8, _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(gather_for_metrics=same, device=torch.device("cpu")), _total_train_tokens=0,
        _tp_size=1, _compute_kl_logps=lambda *_: reference_kl_R + kl_gap,
    )  # fmt: skip
    expected = trl.KTOTrainer._compute_loss(trainer, trainer.model, inputs, False).item()
    baseline = torch.tensor(max(0.0, kl_gap))
    terms = {"logratio_R": batch.ratio.sum(1), "desirable_R": desirable_R, "kl_baseline": baseline}
    found = LOSSES[name](
        *(terms[term] for term in terms_of(LOSSES[name])), beta=0.3, desirable_weight=1.5, undesirable_weight=0.8
    )
    assert found.mean().item() == pytest.approx(expected, rel=1e-6)


def test_simpo_cpo_and_orpo_are_the_peers() -> None:
    cpo_code, orpo_code = (importlib.import_module(f"trl.experimental.{name}") for name in ("cpo", "orpo"))

    batch = Batch(1)
    terms = batch.terms()
    sums = [terms[f"{side}_logp_K"] for side in ("chosen", "rejected")]
    means = [terms[f"{side}_logp_K"] / terms[f"{side}_length_K"] for side in ("chosen", "rejected")]
    common = {"accelerator": SimpleNamespace(device="cpu"), "alpha": 0.0, "label_smoothing": 0.0}
    simpo = SimpleNamespace(**common, loss_type="simpo", beta=2.5, simpo_gamma=1.375)
    assert cpo_code.CPOTrainer.cpo_loss(simpo, *means)[0].mean().item() == pytest.approx(  # pyright: ignore
        batch.ours("simpo", {"beta": 2.5, "gamma": 1.375}), rel=1e-6
    )
    cpo = SimpleNamespace(**common, loss_type="sigmoid", beta=0.1)
    assert cpo_code.CPOTrainer.cpo_loss(cpo, *sums)[0].mean().item() == pytest.approx(  # pyright: ignore
        batch.ours("cpo", {"beta": 0.1, "likelihood_weight": 0.0}), rel=1e-6
    )
    orpo = SimpleNamespace(**common, beta=0.1)
    odds = orpo_code.ORPOTrainer.odds_ratio_loss(orpo, *means)[0].mean().item()  # pyright: ignore
    assert -odds - means[0].mean().item() == pytest.approx(batch.ours("orpo", {"odds_weight": 0.1}), rel=1e-5)
    assert math.isfinite(odds)
