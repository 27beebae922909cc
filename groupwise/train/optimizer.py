"""Optimizers by name and the learning rate of a step, as a pure function of the step. Knows nothing about losses."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from groupwise.model.sharding import by_layout, total_norm
from groupwise.model.zero import Zero
from groupwise.sections import OptimizerSection


class Optimizer(Protocol):
    """What a PyTorch optimizer and ZeRO have in common."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def make_optimizer(section: OptimizerSection, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, or RMSprop as in the DPO paper's code, over the trained parameters.

    What processes hold whole and what they hold parts of are groups of their own: on a GPU a group's tensors are moved
    together, and no operation takes both.
    """
    groups = [{"params": part} for part in by_layout(parameters) if part]
    if section.name == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=section.learning_rate,
            betas=section.betas,
            eps=section.epsilon,
            weight_decay=section.weight_decay,
        )
    return torch.optim.RMSprop(
        groups,
        lr=section.learning_rate,
        alpha=section.alpha,
        eps=section.epsilon,
    )


def names_by_index(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters in the order in which `state_dict` numbers them."""
    if isinstance(optimizer, Zero):
        return list(parameters)
    name_of = {id(p): name for name, p in parameters.items()}
    return [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]


def clipped_step(optimizer: Optimizer, parameters: Iterable[nn.Parameter], max_grad_norm: float | None) -> Tensor:
    """Move the parameters along their gradient, clipped to a norm, and forget it; returns the norm before clipping.

    Where that is not finite nothing is moved, nor where it is 0: a step that teaches nothing leaves the optimizer's
    moments alone. ZeRO was told the largest norm when it was made.
    """
    if isinstance(optimizer, Zero):
        return optimizer.clipped_step()
    moved = list(parameters)
    norm = total_norm([p.grad for p in moved if p.grad is not None])
    assert isinstance(optimizer, torch.optim.Optimizer)
    if torch.isfinite(norm):
        if norm > 0:
            if max_grad_norm is not None:
                for part in by_layout(moved):
                    nn.utils.clip_grads_with_norm_(part, max_grad_norm, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def learning_rate(section: OptimizerSection, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Warm-up rises linearly and its first step is not wasted on a rate of 0: (step + 1) / (warmup + 1), as in the DPO
    paper's code. After it the rate stays, or falls to 0 at `total_steps` in a line or half a cosine.

    >>> section = OptimizerSection(learning_rate=1.0, warmup_steps=3)
    >>> [learning_rate(section, step, 10) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    warmup = section.warmup_steps
    factor = min(1.0, (step + 1) / (warmup + 1))
    if section.schedule != "constant" and step >= warmup:
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        factor = 1 - done if section.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return section.learning_rate * factor


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use `rate` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
