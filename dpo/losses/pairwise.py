"""Losses of a pair that read nothing but its two log-ratios to the reference. Knows no model and no batch.

A log-ratio is log pi(y|x) - log pi_ref(y|x), summed over completion tokens, nats; beta in 1/nat.
Legend: K pairs.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid(
    chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """DPO: -log sigmoid of beta times the difference of log-ratios, [K], nats.

    Eq. 7 of Rafailov et al. 2023 (arXiv 2305.18290). `label_smoothing` e is the probability that a label is flipped
    (conservative DPO, Mitchell's note of 2023): the cross-entropy against that soft label, whose minimum lies at
    beta * (difference of log-ratios) = log((1 - e) / e).

    >>> sigmoid(torch.zeros(1), torch.zeros(1), beta=0.1)    # policy == reference
    tensor([0.6931])
    """
    logit_K = beta * (chosen_logratio_K - rejected_logratio_K)
    return -(1 - label_smoothing) * logsigmoid(logit_K) - label_smoothing * logsigmoid(-logit_K)


def robust(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO, [K], nats: its mean over label flips of probability `label_smoothing` is the loss on clean labels.

    ((1 - e) L(w, l) - e L(l, w)) / (1 - 2 e) of Chowdhury et al. 2024 (arXiv 2403.00409), e below 1/2. Not bounded
    below: a pair that is ranked right by far counts negative.

    >>> robust(torch.zeros(1), torch.zeros(1), beta=0.1, label_smoothing=0.1)
    tensor([0.6931])
    """
    logit_K = beta * (chosen_logratio_K - rejected_logratio_K)
    as_labelled_K, flipped_K = -logsigmoid(logit_K), -logsigmoid(-logit_K)
    return ((1 - label_smoothing) * as_labelled_K - label_smoothing * flipped_K) / (1 - 2 * label_smoothing)


def hinge(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta * difference of log-ratios), [K], no unit.

    SLiC (Zhao et al. 2023, arXiv 2305.10425) with the log-ratios of RSO (Liu et al. 2023, arXiv 2309.06657).

    >>> hinge(torch.tensor([0.0, 5.0]), torch.tensor([0.0, -6.0]), beta=0.1)
    tensor([1., 0.])
    """
    return (1 - beta * (chosen_logratio_K - rejected_logratio_K)).clamp(min=0)


def ipo(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """IPO: squared distance of the difference of log-ratios from 1 / (2 beta), [K], nats squared.

    Eq. 17 of Azar et al. 2023 (arXiv 2310.12036), whose tau is our beta; log-probs are summed as there.

    >>> ipo(torch.tensor([3.0]), torch.tensor([-2.0]), beta=0.1)    # the minimum: 1 / (2 * 0.1) = 5 nats
    tensor([0.])
    """
    return (chosen_logratio_K - rejected_logratio_K - 1 / (2 * beta)) ** 2


def ipo_per_token(
    chosen_logratio_K: Tensor,
    rejected_logratio_K: Tensor,
    chosen_length_K: Tensor,
    rejected_length_K: Tensor,
    *,
    beta: float,
) -> Tensor:
    """IPO on the mean log-ratio per token, [K], (nats per token) squared: not in the paper, but what is widely run.

    >>> ipo_per_token(*map(torch.tensor, ([30.0], [-20.0], [10.0], [10.0])), beta=0.1)
    tensor([0.])
    """
    return ipo(chosen_logratio_K / chosen_length_K, rejected_logratio_K / rejected_length_K, beta=beta)


def exo(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """EXO: KL from the policy's choice between both, sigmoid(beta h), to the soft label [1 - e, e], [K], nats.

    Eq. 16 of Ji et al. 2024 (arXiv 2402.00856) for two completions; the direction is the reverse of DPO's
    cross-entropy. e is `label_smoothing`, which must be above 0.

    >>> h = torch.tensor([10.0]) * math.log(9)
    >>> abs(exo(h, torch.zeros(1), beta=0.1, label_smoothing=0.1).item()) < 1e-6    # sigmoid(log 9) = 1 - 0.1
    True
    """
    logit_K = beta * (chosen_logratio_K - rejected_logratio_K)
    log_right_K, log_wrong_K = logsigmoid(logit_K), logsigmoid(-logit_K)
    towards_right_K = log_right_K.exp() * (log_right_K - math.log1p(-label_smoothing))
    return towards_right_K + log_wrong_K.exp() * (log_wrong_K - math.log(label_smoothing))


def nca(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """NCA: raises the likelihood of the chosen completion itself, not only the difference, [K], nats.

    -log sigmoid(r_w) - (log sigmoid(-r_w) + log sigmoid(-r_l)) / 2 with r = beta * log-ratio: Chen et al. 2024
    (arXiv 2402.05369) for two completions with hard labels.

    >>> nca(torch.zeros(1), torch.zeros(1), beta=0.01)    # 2 log 2
    tensor([1.3863])
    """
    chosen_K, rejected_K = beta * chosen_logratio_K, beta * rejected_logratio_K
    return -logsigmoid(chosen_K) - 0.5 * logsigmoid(-chosen_K) - 0.5 * logsigmoid(-rejected_K)


def bco(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, reward_shift: Tensor, *, beta: float) -> Tensor:
    """BCO: a binary classifier of both completions whose logit is the shifted implicit reward, [K], nats.

    Jung et al. 2024 (arXiv 2404.04656). `reward_shift` is the running mean of the rewards beta * log-ratio, a number
    without gradient that lies between those of chosen and rejected completions.

    >>> bco(torch.zeros(1), torch.zeros(1), torch.tensor(0.0), beta=0.01)    # 2 log 2
    tensor([1.3863])
    """
    return -logsigmoid(beta * chosen_logratio_K - reward_shift) - logsigmoid(reward_shift - beta * rejected_logratio_K)


def sppo(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """SPPO with hard labels: log-ratios of +1 / (2 beta) and -1 / (2 beta) are aimed at, [K], nats squared.

    Eq. 4.7 of Wu et al. 2024 (arXiv 2405.00675) with winning probabilities 1 and 0; its eta is 1 / beta.

    >>> sppo(torch.tensor([5.0]), torch.tensor([-5.0]), beta=0.1)
    tensor([0.])
    """
    return (chosen_logratio_K - 0.5 / beta) ** 2 + (rejected_logratio_K + 0.5 / beta) ** 2


def apo_zero(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """APO-zero: chosen completions become likelier, rejected ones less likely, [K], no unit.

    Eq. 7 of D'Oosterlinck et al. 2024 (arXiv 2408.06266): for data that is better than the model.

    >>> apo_zero(torch.zeros(1), torch.zeros(1), beta=0.1)
    tensor([1.])
    """
    return 1 - torch.sigmoid(beta * chosen_logratio_K) + torch.sigmoid(beta * rejected_logratio_K)


def apo_down(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """APO-down: both become less likely, the rejected one more so, [K], no unit.

    Eq. 8 of D'Oosterlinck et al. 2024 (arXiv 2408.06266): for a model that is better than the data.

    >>> apo_down(torch.zeros(1), torch.zeros(1), beta=0.1)
    tensor([1.])
    """
    margin_K = beta * (chosen_logratio_K - rejected_logratio_K)
    return torch.sigmoid(beta * chosen_logratio_K) + 1 - torch.sigmoid(margin_K)


def discopop(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float, tau: float) -> Tensor:
    """DiscoPOP, the log-ratio modulated loss: logistic where z < 0, exponential where z > 0, mixed within tau, [K].

    (1 - m) log(1 + exp(-z)) + m exp(-z), z = beta * difference of log-ratios, m = sigmoid(z / tau): Eq. 5 of
    Lu et al. 2024 (arXiv 2406.08414). Not convex: it was found by search.

    >>> discopop(torch.zeros(1), torch.zeros(1), beta=0.05, tau=0.05)    # (log 2 + 1) / 2
    tensor([0.8466])
    """
    z_K = beta * (chosen_logratio_K - rejected_logratio_K)
    log_mix_K = logsigmoid(z_K / tau)
    # In one exponent: far on the wrong side exp(-z) alone would overflow while its weight is 0.
    return -torch.sigmoid(-z_K / tau) * logsigmoid(z_K) + (log_mix_K - z_K).exp()
