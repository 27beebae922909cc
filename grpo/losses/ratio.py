"""Probability ratios from log-ratios, none of them infinite. Knows no surrogate and no KL.

Legend: T completion tokens.
"""

from torch import Tensor

LARGEST = 20.0  # nats; a ratio of half a billion


def bounded(logratio_T: Tensor) -> Tensor:
    """Log-ratios of which none is above 20 nats, [T]; the gradient of those above stays what it was.

    A ratio of infinity times a clip's gradient of 0 would be NaN, and a metric of it no number.

    >>> import torch
    >>> logratio_T = torch.tensor([1.0, 99.0], requires_grad=True)
    >>> found_T = bounded(logratio_T)
    >>> found_T.sum().backward()
    >>> found_T.tolist(), logratio_T.grad
    ([1.0, 20.0], tensor([1., 1.]))
    """
    return logratio_T - (logratio_T - LARGEST).clamp(min=0).detach()


def ratio_of(logratio_T: Tensor) -> Tensor:
    """pi(token) / pi_old(token) where the log-ratio is log pi(token) - log pi_old(token), [T]; at most e^20."""
    return bounded(logratio_T).exp()
