"""DPO with other log-probs, margins or weights: lengths, tails, certainty, a floor for the chosen. Knows no model.

Log-ratios are summed over completion tokens unless a name says otherwise, nats; lengths in tokens.
Legend: K pairs.
"""

from torch import Tensor

from dpo.losses.pairwise import sigmoid


def length_normalised(
    chosen_logratio_K: Tensor,
    rejected_logratio_K: Tensor,
    chosen_length_K: Tensor,
    rejected_length_K: Tensor,
    *,
    beta: float,
) -> Tensor:
    """DPO on the mean log-ratio per token, [K], nats; beta is in tokens per nat, about a length times that of DPO.

    Eq. 6 of Tulu 3 (Lambert et al. 2024, arXiv 2411.15124).

    >>> import torch
    >>> length_normalised(*map(torch.tensor, ([2.0], [0.0], [4.0], [7.0])), beta=2.0)    # -log sigmoid(2 * 2/4)
    tensor([0.3133])
    """
    return sigmoid(chosen_logratio_K / chosen_length_K, rejected_logratio_K / rejected_length_K, beta=beta)


def ld_dpo(
    chosen_head_logratio_K: Tensor,
    chosen_tail_logratio_K: Tensor,
    rejected_head_logratio_K: Tensor,
    rejected_tail_logratio_K: Tensor,
    *,
    beta: float,
    tail_weight: float,
) -> Tensor:
    """LD-DPO: what the longer completion has beyond the length of the shorter counts `tail_weight`, [K], nats.

    Liu et al. 2024 (arXiv 2409.06411), whose alpha is our tail_weight: 1 is DPO. A head is the first
    min(|y_w|, |y_l|) tokens of a completion.

    >>> import torch
    >>> ld_dpo(*map(torch.tensor, ([1.0], [4.0], [1.0], [0.0])), beta=1.0, tail_weight=0.0)
    tensor([0.6931])
    """
    chosen_K = chosen_head_logratio_K + tail_weight * chosen_tail_logratio_K
    return sigmoid(chosen_K, rejected_head_logratio_K + tail_weight * rejected_tail_logratio_K, beta=beta)


def r_dpo(
    chosen_logratio_K: Tensor,
    rejected_logratio_K: Tensor,
    chosen_length_K: Tensor,
    rejected_length_K: Tensor,
    *,
    beta: float,
    length_penalty: float,
) -> Tensor:
    """R-DPO: DPO for the reward r(x, y) - length_penalty * |y|, [K], nats; the penalty is per token, in beta * nats.

    Park et al. 2024 (arXiv 2403.19159), whose alpha is our length_penalty. Where the chosen completion is the longer
    one, its length explains part of the preference already, and less is asked of the policy.

    >>> import torch
    >>> r_dpo(*map(torch.tensor, ([0.0], [0.0], [9.0], [4.0])), beta=0.1, length_penalty=0.2)    # -log sigmoid(1)
    tensor([0.3133])
    """
    chosen_K = beta * chosen_logratio_K + length_penalty * chosen_length_K
    return sigmoid(chosen_K, beta * rejected_logratio_K + length_penalty * rejected_length_K, beta=1.0)


def wpo(
    chosen_logratio_K: Tensor,
    rejected_logratio_K: Tensor,
    chosen_certainty_K: Tensor,
    rejected_certainty_K: Tensor,
    *,
    beta: float,
) -> Tensor:
    """WPO: DPO weighted by how likely the policy itself would write both completions, [K], nats.

    Eq. 2 of Zhou et al. 2024 (arXiv 2406.11827), the sampled alignment: a certainty is the mean over a completion's
    tokens of log p - log sum_v p_v^2, which is 0 where a token is as likely as a draw agrees with another; it has no
    gradient.

    >>> import torch
    >>> zero_K = torch.zeros(1)
    >>> wpo(zero_K, zero_K, zero_K, torch.tensor([0.5]).log(), beta=0.1)    # half of log 2
    tensor([0.3466])
    """
    weight_K = (chosen_certainty_K + rejected_certainty_K).detach().exp()
    return weight_K * sigmoid(chosen_logratio_K, rejected_logratio_K, beta=beta)


def dpop(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float, penalty: float) -> Tensor:
    """DPOP: DPO with a penalty where the chosen completion is less likely than under the reference, [K], nats.

    -log sigmoid(beta (h - penalty * max(0, -chosen log-ratio))) of Pal et al. 2024 (arXiv 2402.13228, Smaug), whose
    lambda is our penalty: 0 is DPO.

    >>> import torch
    >>> dpop(torch.tensor([-1.0]), torch.tensor([-1.0]), beta=1.0, penalty=2.0)    # -log sigmoid(-2)
    tensor([2.1269])
    """
    return sigmoid(chosen_logratio_K - penalty * (-chosen_logratio_K).clamp(min=0), rejected_logratio_K, beta=beta)
