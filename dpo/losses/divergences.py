"""DPO under other divergences from the reference than the reverse KL. Knows no model and no batch.

f-DPO (Wang et al. 2023, arXiv 2309.16240): max E[r] - beta D_f(pi || pi_ref) makes beta f'(pi / pi_ref) the implicit
reward, which takes the place of beta log(pi / pi_ref). Constants of f' cancel in the difference and are left out.
The reverse KL, f'(u) = log u + 1, is DPO.
Legend: N completions, K pairs.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo.losses.pairwise import sigmoid


def forward_kl_slope(logratio_N: Tensor) -> Tensor:
    """f'(u) = -1/u of the forward KL, [N]: the log-ratio at u = 1 but for a constant, ever steeper below.

    >>> forward_kl_slope(torch.zeros(1))
    tensor([-1.])
    """
    return -(-logratio_N).exp()


def js_slope(logratio_N: Tensor) -> Tensor:
    """f'(u) = log(2u / (u + 1)) of the Jensen-Shannon divergence without log 2, [N]; never above 0.

    >>> js_slope(torch.zeros(1))
    tensor([-0.6931])
    """
    return logsigmoid(logratio_N)


def alpha_slope(logratio_N: Tensor, *, divergence_alpha: float) -> Tensor:
    """f'(u) = (u^(a-1) - 1) / (a - 1), [N]: a -> 1 is the reverse KL, a = 0 the forward KL; the paper's alpha is 1 - a.

    >>> alpha_slope(torch.tensor([2.0]), divergence_alpha=1.0)
    tensor([2.])
    """
    power = divergence_alpha - 1
    return logratio_N if power == 0 else torch.expm1(power * logratio_N) / power


def f_forward_kl(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """DPO under the forward KL, [K], nats.

    >>> f_forward_kl(torch.zeros(1), torch.zeros(1), beta=0.1)
    tensor([0.6931])
    """
    return sigmoid(forward_kl_slope(chosen_logratio_K), forward_kl_slope(rejected_logratio_K), beta=beta)


def f_js(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float) -> Tensor:
    """DPO under the Jensen-Shannon divergence, [K], nats.

    >>> f_js(torch.zeros(1), torch.zeros(1), beta=0.1)
    tensor([0.6931])
    """
    return sigmoid(js_slope(chosen_logratio_K), js_slope(rejected_logratio_K), beta=beta)


def f_alpha(chosen_logratio_K: Tensor, rejected_logratio_K: Tensor, *, beta: float, divergence_alpha: float) -> Tensor:
    """DPO under an alpha-divergence, [K], nats.

    >>> f_alpha(torch.zeros(1), torch.zeros(1), beta=0.1, divergence_alpha=0.5)
    tensor([0.6931])
    """
    return sigmoid(
        alpha_slope(chosen_logratio_K, divergence_alpha=divergence_alpha),
        alpha_slope(rejected_logratio_K, divergence_alpha=divergence_alpha),
        beta=beta,
    )
