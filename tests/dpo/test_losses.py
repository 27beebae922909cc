"""Every preference loss against numbers derived by hand, finite differences, and the identities of its paper."""

import math
from collections.abc import Callable
from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpo.catalogue import OBJECTIVES
from dpo.losses import LOSSES
from dpo.losses.divergences import alpha_slope, forward_kl_slope, js_slope
from dpo.losses.pairwise import bco, discopop, exo, hinge, ipo, ipo_per_token, nca, robust, sigmoid, sppo
from dpo.losses.ranking import plackett_luce
from dpo.losses.reference_free import cpo, log_odds, orpo, simpo
from dpo.losses.transport import matched_by_rank
from dpo.losses.variants import dpop, ld_dpo, length_normalised, r_dpo
from dpo.terms import keys_of, terms_of

logratios = st.floats(-20, 20)
betas = st.sampled_from([0.05, 0.1, 0.5, 2.0])
# One pair: log-ratios 2 and -1, log-probs -6 and -8 over 3 and 4 tokens; the rejected one's 4th token has half of it.
PAIR = {
    "chosen_logratio_K": 2.0, "rejected_logratio_K": -1.0, "chosen_logp_K": -6.0, "rejected_logp_K": -8.0,
    "chosen_length_K": 3.0, "rejected_length_K": 4.0, "chosen_head_logratio_K": 2.0, "chosen_tail_logratio_K": 0.0,
    "rejected_head_logratio_K": -0.5, "rejected_tail_logratio_K": -0.5, "chosen_certainty_K": -0.5,
    "rejected_certainty_K": -1.0, "reward_shift": 0.3, "kl_baseline": 0.5, "matched_reference_margin_K": 0.4,
    "matched_rejected_K": -0.7, "matched_chosen_K": 1.5,
}  # fmt: skip


def s(x: float) -> float:
    return 1 / (1 + exp(-x))


def nls(x: float) -> float:
    """-log sigmoid."""
    return log(1 + exp(-x))


LOG_ODDS_W, LOG_ODDS_L = -2 - log(1 - exp(-2)), -2 - log(1 - exp(-2))
BY_HAND: dict[str, tuple[dict[str, float], float]] = {
    "sigmoid": ({"beta": 0.5, "label_smoothing": 0.1}, 0.9 * nls(1.5) + 0.1 * nls(-1.5)),
    "robust": ({"beta": 0.5, "label_smoothing": 0.1}, (0.9 * nls(1.5) - 0.1 * nls(-1.5)) / 0.8),
    "hinge": ({"beta": 0.25}, 0.25),
    "ipo": ({"beta": 0.5}, (3 - 1) ** 2),
    "ipo_per_token": ({"beta": 0.5}, (2 / 3 + 1 / 4 - 1) ** 2),
    "exo": ({"beta": 0.5, "label_smoothing": 0.2}, s(1.5) * log(s(1.5) / 0.8) + s(-1.5) * log(s(-1.5) / 0.2)),
    "nca": ({"beta": 0.5}, nls(1) + nls(-1) / 2 + nls(0.5) / 2),
    "bco": ({"beta": 0.5}, nls(1 - 0.3) + nls(0.5 + 0.3)),
    "sppo": ({"beta": 0.5}, 1.0 + 0.0),
    "apo_zero": ({"beta": 0.5}, 1 - s(1) + s(-0.5)),
    "apo_down": ({"beta": 0.5}, s(1) + 1 - s(1.5)),
    "discopop": ({"beta": 0.5, "tau": 0.5}, (1 - s(3)) * nls(1.5) + s(3) * exp(-1.5)),
    "f_forward_kl": ({"beta": 0.5}, nls(0.5 * (exp(1) - exp(-2)))),
    "f_js": ({"beta": 0.5}, nls(0.5 * (nls(-1) - nls(2)))),
    "f_alpha": ({"beta": 0.5, "divergence_alpha": 0.5}, nls(0.5 * (-2 * exp(-1) + 2 * exp(0.5)))),
    "aot": ({"beta": 0.5, "label_smoothing": 0.1}, 0.9 * nls(0.8) + 0.1 * nls(-0.8)),
    "aot_unpaired": ({"beta": 0.5, "label_smoothing": 0.0}, (nls(1.35) + nls(1.25)) / 2),
    "length_normalised": ({"beta": 2.0}, nls(2 * (2 / 3 + 1 / 4))),
    "ld_dpo": ({"beta": 0.5, "tail_weight": 0.4}, nls(0.5 * (2 + 0.5 + 0.4 * 0.5))),
    "r_dpo": ({"beta": 0.5, "length_penalty": 0.2}, nls(1.5 + 0.2 * (3 - 4))),
    "wpo": ({"beta": 0.5}, exp(-1.5) * nls(1.5)),
    "dpop": ({"beta": 0.5, "penalty": 5.0}, nls(1.5)),
    "rpo": ({"beta": 0.5, "likelihood_weight": 0.1}, nls(1.5) + 0.6),
    "iterative_rpo": ({"beta": 0.5, "likelihood_weight": 0.1}, nls(1.5) + 0.2),
    "simpo": ({"beta": 2.0, "gamma": 0.5}, nls(2 * (-2 + 2) - 0.5)),
    "orpo": ({"odds_weight": 0.3}, 2 + 0.3 * nls(LOG_ODDS_W - LOG_ODDS_L)),
    "cpo": ({"beta": 0.5, "likelihood_weight": 2.0}, nls(1) + 12),
    "sft": ({}, 6.0),
    "sft_per_token": ({}, 2.0),
    "unlikelihood": ({"unlikelihood_weight": 0.25}, 6 - 2),
    # Three completions with log-ratios 2, -1, 0.5 that score 2, 1, 1: the best beats both, the tied ones nobody.
    "plackett_luce": ({"beta": 0.5}, log(exp(1) + exp(-0.5) + exp(0.25)) - 1),
    # Log-ratios 2 (desirable), -1, 0.5 (undesirable) around 0.5: gains 1.5, 1.5 and 0 times beta; weights 1 and 2.
    "kto": (
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 2.0},
        (1 - s(0.75)) + 2 * (1 - s(0.75)) + 2 * 0.5,
    ),
    "apo_zero_unpaired": (
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 2.0}, (1 - s(1)) + 2 * s(-0.5) + 2 * s(0.25)
    ),
    "bco_unpaired": (
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 2.0}, nls(0.7) + 2 * nls(0.8) + 2 * nls(0.05)
    ),
}  # fmt: skip


def inputs_of(name: str) -> list[Tensor]:
    """The pair above, or for losses of completions three of them in one group."""
    completions = {
        "logratio_R": torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64),
        "score_R": torch.tensor([2.0, 1.0, 1.0]),
        "group_R": torch.zeros(3, dtype=torch.long),
        "desirable_R": torch.tensor([True, False, False]),
    }
    pair = {
        term: torch.tensor([value] if term.endswith("_K") else value, dtype=torch.float64)
        for term, value in PAIR.items()
    }
    return [(completions | pair)[term] for term in terms_of(LOSSES[name])]


def test_every_loss_has_an_entry_and_numbers_derived_by_hand() -> None:
    assert LOSSES.keys() == OBJECTIVES.keys() == BY_HAND.keys()
    for name, entry in OBJECTIVES.items():
        assert set(keys_of(LOSSES[name])) == entry.keys.keys() - {"shift_decay"}, name
        compares = any("logratio" in term or "reference" in term for term in terms_of(LOSSES[name]))
        assert entry.reference == compares, name


@pytest.mark.parametrize("name", BY_HAND)
def test_the_value_is_the_one_derived_by_hand(name: str) -> None:
    keys, expected = BY_HAND[name]
    assert LOSSES[name](*inputs_of(name), **keys).sum().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    """In float64, with respect to every log-prob and log-ratio. What has no gradient by definition gets none."""
    given_ = inputs_of(name)
    terms = terms_of(LOSSES[name])
    free = [place for place, term in enumerate(terms) if "logp" in term or "logratio" in term]

    def loss(*values: Tensor) -> Tensor:
        every = list(given_)
        for place, value in zip(free, values, strict=True):
            every[place] = value
        return LOSSES[name](*every, **BY_HAND[name][0])

    leaves = [(given_[place] + 0.01).requires_grad_() for place in free]
    if name == "aot_unpaired":  # half of its value is a number: the gradient is that of both sides, see its docstring
        (chosen, rejected), beta = torch.autograd.grad(loss(*leaves).sum(), leaves), 0.5
        assert chosen.item() == pytest.approx(-beta * s(-beta * (2.01 + 0.7)), rel=1e-9)
        assert rejected.item() == pytest.approx(beta * s(-beta * (1.5 + 0.99)), rel=1e-9)
        return
    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, entry in OBJECTIVES.items() if entry.start is not None])
def test_the_known_start_is_the_loss_where_policy_and_reference_are_equal(name: str) -> None:
    start, keys = OBJECTIVES[name].start, BY_HAND[name][0]
    at_zero = ("log", "matched", "shift", "kl")
    inputs = [
        torch.zeros_like(value) if any(part in term for part in at_zero) else value
        for term, value in zip(terms_of(LOSSES[name]), inputs_of(name), strict=True)
    ]
    if OBJECTIVES[name].unit == "completion":
        keys = {**keys, "undesirable_weight": 1.0}
        assert OBJECTIVES[name].start({**keys, "undesirable_weight": 2.0}) is None  # type: ignore[misc]
    assert start is not None
    assert LOSSES[name](*inputs, **keys).mean().item() == pytest.approx(start(keys), rel=1e-12)


# --- DPO


def pair_loss(
    loss: Callable[..., Tensor], chosen: float, rejected: float, *more: float, **keys: float
) -> tuple[float, list[float]]:
    """Value of one pair, and its derivative by both log-ratios."""
    sides = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)]
    value = loss(*sides, *(torch.tensor([one], dtype=torch.float64) for one in more), **keys).sum()
    return value.item(), [grad.item() for grad in torch.autograd.grad(value, sides)]


@given(logratios, logratios, betas)
def test_closed_form_of_equation_7(chosen: float, rejected: float, beta: float) -> None:
    assert pair_loss(sigmoid, chosen, rejected, beta=beta)[0] == pytest.approx(
        nls(beta * (chosen - rejected)), rel=1e-9
    )


@given(logratios, logratios, betas)
def test_gradient_is_that_of_section_4_and_not_of_appendix_a4(chosen: float, rejected: float, beta: float) -> None:
    """App. A.4 has chosen and rejected swapped inside the sigmoid; section 4 agrees with finite differences."""
    _, grad = pair_loss(sigmoid, chosen, rejected, beta=beta)
    weight = s(beta * (rejected - chosen))
    assert grad == pytest.approx([-beta * weight, beta * weight], rel=1e-9)


def test_gradient_weight_at_the_start_is_half_of_beta() -> None:
    assert pair_loss(sigmoid, 0.0, 0.0, beta=0.3)[1] == pytest.approx([-0.15, 0.15])


@pytest.mark.parametrize("name", ["sigmoid", "robust", "hinge", "apo_zero", "discopop", "plackett_luce"])
def test_large_margins_stay_finite(name: str) -> None:
    keys = BY_HAND[name][0]
    for sign in (1, -1):
        if name == "plackett_luce":
            logratio = torch.tensor([sign * 1e4, -sign * 1e4], requires_grad=True)
            loss = plackett_luce(logratio, torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long), **keys).sum()
            leaves = [logratio]
        else:
            leaves = [torch.tensor([sign * side * 80.0], requires_grad=True) for side in (1, -1)]
            loss = LOSSES[name](*leaves, **keys).sum()
        assert all(torch.isfinite(value).all() for value in (loss, *torch.autograd.grad(loss, leaves)))


# --- stationary points and reductions


@pytest.mark.parametrize("smoothing", [0.1, 0.25])
def test_conservative_dpo_and_exo_are_stationary_at_the_log_odds(smoothing: float) -> None:
    """The peer's `sigmoid` loss ignores label smoothing altogether; here it moves the optimum to a known place."""
    optimum = log((1 - smoothing) / smoothing) / 0.2
    for loss in (sigmoid, exo):
        keys = {"beta": 0.2, "label_smoothing": smoothing}
        best, grad = pair_loss(loss, optimum, 0.0, **keys)
        assert grad == pytest.approx([0.0, 0.0], abs=1e-12)
        assert best < pair_loss(loss, optimum + 1, 0.0, **keys)[0] < pair_loss(loss, optimum + 2, 0.0, **keys)[0]


@given(logratios, betas, st.sampled_from([0.05, 0.1, 0.3]))
def test_robust_dpo_is_unbiased_under_label_flips(h: float, beta: float, rate: float) -> None:
    keys = {"beta": beta, "label_smoothing": rate}
    noisy = (1 - rate) * pair_loss(robust, h, 0.0, **keys)[0] + rate * pair_loss(robust, 0.0, h, **keys)[0]
    assert noisy == pytest.approx(pair_loss(sigmoid, h, 0.0, beta=beta)[0], rel=1e-9, abs=1e-9)


def test_squared_losses_are_stationary_where_their_papers_say() -> None:
    assert pair_loss(ipo, 7.0, 2.0, beta=0.1) == (0.0, [0.0, 0.0])
    assert pair_loss(sppo, 5.0, -5.0, beta=0.1) == (0.0, [0.0, 0.0])
    assert pair_loss(ipo_per_token, 20.0, 6.0, 4.0, 3.0, beta=1 / 6)[0] == pytest.approx(0.0)
    assert pair_loss(hinge, 10.5, 0.0, beta=0.1) == (0.0, [0.0, 0.0])
    assert pair_loss(hinge, 9.0, 0.0, beta=0.1)[1] == pytest.approx([-0.1, 0.1])


def test_nca_holds_the_chosen_reward_up_and_dpo_does_not() -> None:
    """At equal log-ratios far below 0, DPO is indifferent to raising both; NCA raises the chosen one, SPPO too."""
    both = [sum(pair_loss(loss, -30.0, -30.0, beta=0.1)[1]) for loss in (sigmoid, nca)]
    assert both[0] == pytest.approx(0) and both[1] < -0.05


@given(logratios, logratios, betas)
def test_apo_zero_of_a_pair_is_that_of_its_two_labels(chosen: float, rejected: float, beta: float) -> None:
    pair = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected)]
    labelled_R = LOSSES["apo_zero_unpaired"](torch.cat(pair), torch.tensor([True, False]), beta=beta)
    assert labelled_R.sum().item() == pytest.approx(LOSSES["apo_zero"](*pair, beta=beta).item(), rel=1e-12)


@given(logratios, logratios)
def test_bco_without_shift_bounds_dpo_from_above(chosen: float, rejected: float) -> None:
    """Theorem of the BCO paper: -log s(a) - log s(-b) >= -log s(a - b), for every shift."""
    for shift in (-1.0, 0.0, 2.0):
        chosen_K, rejected_K = (torch.tensor([one], dtype=torch.float64) for one in (chosen, rejected))
        value = bco(chosen_K, rejected_K, torch.tensor(shift), beta=1.0).item()
        assert value >= pair_loss(sigmoid, chosen, rejected, beta=1.0)[0] - 1e-9


@given(logratios, logratios, betas)
def test_variants_reduce_to_dpo(chosen: float, rejected: float, beta: float) -> None:
    dpo = pair_loss(sigmoid, chosen, rejected, beta=beta)
    one = torch.ones(1, dtype=torch.float64)
    c, r = (torch.tensor([one], dtype=torch.float64) for one in (chosen, rejected))
    same = {
        "LD-DPO, tail_weight 1": ld_dpo(c - 3, 3 * one, r + 1, -one, beta=beta, tail_weight=1.0),
        "DPOP, penalty 0": dpop(c, r, beta=beta, penalty=0.0),
        "RPO, weight 0": LOSSES["rpo"](c, r, 5 * one, beta=beta, likelihood_weight=0.0),
        "iterative RPO, weight 0": LOSSES["iterative_rpo"](c, r, 5 * one, one, beta=beta, likelihood_weight=0.0),
        "R-DPO, penalty 0": r_dpo(c, r, 9 * one, one, beta=beta, length_penalty=0.0),
        "R-DPO, equal lengths": r_dpo(c, r, 9 * one, 9 * one, beta=beta, length_penalty=0.4),
        "length-normalised, one token": length_normalised(c, r, one, one, beta=beta),
        "WPO, certain": LOSSES["wpo"](c, r, 0 * one, 0 * one, beta=beta),
        "alpha-divergence, a = 1": LOSSES["f_alpha"](c, r, beta=beta, divergence_alpha=1.0),
        "robust, no noise": robust(c, r, beta=beta, label_smoothing=0.0),
        "CPO, weight 0": cpo(c, r, beta=beta, likelihood_weight=0.0),
        "SimPO, one token, no margin": simpo(c, r, one, one, beta=beta, gamma=0.0),
        "AOT, matched with itself": LOSSES["aot"](c, 0 * c, r, beta=beta),
    }
    for name, value in same.items():
        assert value.item() == pytest.approx(dpo[0], rel=1e-6, abs=1e-9), name
    assert pair_loss(ipo_per_token, chosen, rejected, 1.0, 1.0, beta=beta) == pair_loss(
        ipo, chosen, rejected, beta=beta
    )


@given(st.floats(-5, 5))
def test_divergences_meet_at_their_limits(logratio: float) -> None:
    """f' are derivatives of the divergences: slope of f'(log u) at u = 1 is f''(1) = 1, one half for Jensen-Shannon."""
    l = torch.tensor([logratio], dtype=torch.float64)  # noqa: E741
    assert alpha_slope(l, divergence_alpha=1 + 1e-7).item() == pytest.approx(logratio, rel=1e-5, abs=1e-6)
    assert alpha_slope(l, divergence_alpha=0.0).item() == pytest.approx(1 + forward_kl_slope(l).item(), rel=1e-9)
    u = exp(logratio)
    assert js_slope(l).item() == pytest.approx(log(2 * u / (u + 1)) - log(2), rel=1e-9, abs=1e-12)


def test_discopop_is_logistic_on_the_wrong_side_and_exponential_on_the_right_one() -> None:
    far = {"beta": 1.0, "tau": 0.01}
    assert pair_loss(discopop, -3.0, 0.0, **far)[0] == pytest.approx(nls(-3.0), rel=1e-9)
    assert pair_loss(discopop, 3.0, 0.0, **far)[0] == pytest.approx(exp(-3.0), rel=1e-9)


def test_discopop_rises_with_the_margin_at_the_start() -> None:
    """Not convex: at z = 0 the change of the mixture outweighs both losses; its slope is (1 - log 2)/(4 tau) - 3/4."""
    _, (slope, _) = pair_loss(discopop, 0.0, 0.0, beta=1.0, tau=0.05)
    assert slope == pytest.approx((1 - log(2)) / 0.2 - 0.75, rel=1e-9) and slope > 0


def test_dpop_only_charges_for_a_chosen_completion_that_falls() -> None:
    assert pair_loss(dpop, 2.0, 1.0, beta=1.0, penalty=50.0) == pair_loss(sigmoid, 2.0, 1.0, beta=1.0)
    _, (chosen, _) = pair_loss(dpop, -0.1, -1.0, beta=1.0, penalty=50.0)
    assert chosen == pytest.approx(-51 * s(-(0.9 - 5)), rel=1e-9)


@given(st.floats(-30, -1e-4))
def test_log_odds_are_exact_near_both_ends(mean_logp: float) -> None:
    expected = mean_logp - log(-math.expm1(mean_logp))
    assert log_odds(torch.tensor([mean_logp], dtype=torch.float64)).item() == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


def test_orpo_without_odds_is_fine_tuning() -> None:
    c, r, one = torch.tensor([-4.0]), torch.tensor([-1.0]), torch.ones(1)
    assert torch.equal(orpo(c, r, 2 * one, one, odds_weight=0.0), LOSSES["sft_per_token"](c, 2 * one))


# --- rankings


@given(logratios, logratios, betas)
def test_plackett_luce_of_two_is_dpo(chosen: float, rejected: float, beta: float) -> None:
    both = torch.tensor([rejected, chosen], dtype=torch.float64)
    value = plackett_luce(both, torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long), beta=beta).item()
    assert value == pytest.approx(pair_loss(sigmoid, chosen, rejected, beta=beta)[0], rel=1e-9, abs=1e-12)


def test_plackett_luce_is_the_explicit_product_of_equation_20_and_ignores_constants() -> None:
    logratio = torch.tensor([0.3, -1.0, 2.0, 0.5, 7.0, 1.0], dtype=torch.float64)
    score = torch.tensor([1.0, 0.0, 3.0, 2.0, 5.0, 9.0])
    group = torch.tensor([0, 0, 0, 0, 1, 1])
    w = [exp(0.5 * value) for value in (2.0, 0.5, 0.3, -1.0)]
    product = w[0] / sum(w) * w[1] / sum(w[1:]) * w[2] / sum(w[2:])
    expected = [-log(product), nls(0.5 * (1.0 - 7.0))]
    assert plackett_luce(logratio, score, group, beta=0.5).tolist() == pytest.approx(expected, rel=1e-12)
    shifted = logratio + torch.tensor([5.0] * 4 + [-3.0] * 2)
    assert plackett_luce(shifted, score, group, beta=0.5).tolist() == pytest.approx(expected, rel=1e-12)


def test_ties_do_not_compete() -> None:
    """Two equals above a third: each is only asked to beat the third, and all equal teach nothing."""
    logratio = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    group = torch.zeros(3, dtype=torch.long)
    tied = plackett_luce(logratio, torch.tensor([1.0, 1.0, 0.0]), group, beta=1.0).item()
    assert tied == pytest.approx(nls(0.5) + nls(-2.5), rel=1e-12)
    assert plackett_luce(logratio, torch.ones(3), group, beta=1.0).item() == pytest.approx(0.0, abs=1e-12)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=12, unique=True), st.randoms())
def test_matching_by_rank_pairs_the_sorted_lists(values: list[int], random: object) -> None:
    one = torch.tensor(values, dtype=torch.float64)
    other = one.flip(0) * 3 + 1
    pairs = sorted(zip(one.tolist(), matched_by_rank(one, other).tolist(), strict=True))
    assert [pair[1] for pair in pairs] == other.sort().values.tolist()
