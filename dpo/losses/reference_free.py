"""Losses that compare log-probs of the policy itself: no reference model is loaded or run. Knows no model and no batch.

Log-probs are summed over completion tokens, nats; lengths in tokens.
Legend: K pairs, N completions.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def simpo(
    chosen_logp_K: Tensor,
    rejected_logp_K: Tensor,
    chosen_length_K: Tensor,
    rejected_length_K: Tensor,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """SimPO: the mean log-prob per token is the reward, and must win by gamma, [K], nats.

    -log sigmoid(beta log pi(y_w)/|y_w| - beta log pi(y_l)/|y_l| - gamma): Eq. 6 of Meng et al. 2024
    (arXiv 2405.14734); beta in tokens per nat.

    >>> simpo(*map(torch.tensor, ([-4.0], [-9.0], [4.0], [3.0])), beta=1.0, gamma=2.0)    # -1 + 3 - 2 = 0
    tensor([0.6931])
    """
    margin_K = beta * (chosen_logp_K / chosen_length_K - rejected_logp_K / rejected_length_K)
    return -logsigmoid(margin_K - gamma)


def log_odds(mean_logp_N: Tensor) -> Tensor:
    """log(p / (1 - p)) where log p is the mean log-prob per token, [N]; infinite where p is 1.

    >>> log_odds(torch.tensor([0.5]).log())
    tensor([0.])
    """
    # 1 - p without cancellation, by the half in which p lies.
    near_one = mean_logp_N > -0.6931
    safe_N = torch.where(near_one, mean_logp_N, -1.0)
    far_N = torch.where(near_one, -1.0, mean_logp_N)
    return mean_logp_N - torch.where(near_one, (-torch.expm1(safe_N)).log(), torch.log1p(-far_N.exp()))


def orpo(
    chosen_logp_K: Tensor,
    rejected_logp_K: Tensor,
    chosen_length_K: Tensor,
    rejected_length_K: Tensor,
    *,
    odds_weight: float,
) -> Tensor:
    """ORPO: likelihood of the chosen completion per token, and the odds ratio of both, [K], nats per token.

    -log pi(y_w)/|y_w| - odds_weight * log sigmoid(log odds(y_w) - log odds(y_l)), odds of the mean log-prob: Eq. 6 and
    7 of Hong et al. 2024 (arXiv 2403.07691), whose lambda is our odds_weight.

    >>> orpo(*map(torch.tensor, ([-2.0], [-3.0], [2.0], [3.0])), odds_weight=1.0)    # 1 + log 2
    tensor([1.6931])
    """
    chosen_K, rejected_K = chosen_logp_K / chosen_length_K, rejected_logp_K / rejected_length_K
    return -chosen_K - odds_weight * logsigmoid(log_odds(chosen_K) - log_odds(rejected_K))


def cpo(chosen_logp_K: Tensor, rejected_logp_K: Tensor, *, beta: float, likelihood_weight: float = 1.0) -> Tensor:
    """CPO: DPO with a uniform reference, and the likelihood of the chosen completion, [K], nats.

    -log sigmoid(beta (log pi(y_w) - log pi(y_l))) - likelihood_weight * log pi(y_w): Eq. 3 to 5 of Xu et al. 2024
    (arXiv 2401.08417), where the weight is 1 and log-probs are summed.

    >>> cpo(torch.tensor([-2.0]), torch.tensor([-2.0]), beta=0.1)    # log 2 + 2
    tensor([2.6931])
    """
    return -logsigmoid(beta * (chosen_logp_K - rejected_logp_K)) - likelihood_weight * chosen_logp_K
