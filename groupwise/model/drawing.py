"""Logits to one token per row, and the log-prob it was drawn with.

Every row brings one uniform number, so a token is a function of its row alone. Nothing here reads a value back from the
device or depends on one, so the draw can be part of a CUDA graph. Knows nothing about prompts, ends or random streams.

Legend: A rows, V vocabulary, B blocks of the vocabulary, then tokens of one block.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from groupwise.sections import SamplingSection

_BLOCK = 256  # entries of the cumulative sum that are looked at closely


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. The order is temperature, then top-k, then top-p, then min-p.

    temperature      divides the logits; 0 takes the likeliest token
    top_k            only the k likeliest tokens; None: all
    top_p            only the fewest likeliest tokens whose probabilities sum to this; 1: all
    min_p            only tokens at least this many times as likely as the likeliest; 0: all
    max_new_tokens   a completion that is longer is cut, and is not finished
    stop             a completion that contains one of these texts ends with the token that completed it
    rows_at_once     completions decoded together; memory only
    captured         a decoding step is captured as a CUDA graph and replayed; time only
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    rows_at_once: int = 512
    captured: bool = False

    def __post_init__(self) -> None:
        if self.captured and self.stop:
            raise ValueError("captured steps see no texts, so nothing could stop them at one")

    @classmethod
    def of(cls, section: SamplingSection) -> "SamplingParams":
        """As configured."""
        return cls(**{field.name: getattr(section, field.name) for field in fields(cls)})

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn."""
        return self.temperature > 0 and (self.top_k is not None or self.top_p < 1 or self.min_p > 0)


def probabilities(logits_AV: Tensor, temperature: float) -> Tensor:
    """The whole distribution at a temperature (0 as 1), [A, V], in float32 or wider."""
    wide = logits_AV.to(torch.promote_types(logits_AV.dtype, torch.float32))
    return (wide / temperature if temperature not in (0, 1) else wide).softmax(dim=-1)


def draw(p_AV: Tensor, uniform_A: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row; its log-prob under the whole distribution, and under the one drawn from, nats.

    A row that holds NaN gets some token of the vocabulary.
    """
    if params.temperature == 0:
        token_A = p_AV.argmax(dim=-1)
        logp_A = _log_p(p_AV, token_A)
        return token_A, logp_A, torch.zeros_like(logp_A)
    kept_AV = truncated(p_AV, params) if params.truncates else p_AV
    token_A = search(kept_AV, uniform_A)
    logp_A = _log_p(p_AV, token_A)
    drawn_A = logp_A - kept_AV.sum(dim=-1).log() if params.truncates else logp_A
    return token_A, logp_A, drawn_A


def truncated(p_AV: Tensor, params: SamplingParams) -> Tensor:
    """The probabilities with those of tokens that must not be drawn set to 0; they no longer sum to 1."""
    ordered_AV, token_AV = p_AV.sort(dim=-1, descending=True, stable=True)
    keep_AV = torch.ones_like(ordered_AV, dtype=torch.bool)
    if params.top_k is not None:
        keep_AV[:, params.top_k :].fill_(False)  # without a tensor from the host
    if params.top_p < 1:
        left_AV = ordered_AV * keep_AV
        before_AV = left_AV.cumsum(dim=-1) - left_AV
        keep_AV &= before_AV < params.top_p * left_AV.sum(dim=-1, keepdim=True)
    keep_AV &= ordered_AV >= params.min_p * ordered_AV[:, :1]
    return torch.zeros_like(p_AV).scatter(1, token_AV, ordered_AV * keep_AV)


def search(p_AV: Tensor, uniform_A: Tensor) -> Tensor:
    """The token at which each row's cumulative sum passes the row's uniform number in [0, 1).

    Sums of blocks come first and only the block that matters is summed token by token: a sum is several times cheaper
    than a running sum. Rounding can never end at a token of probability 0, and NaN never outside the vocabulary.
    """
    vocabulary = p_AV.shape[1]
    whole = vocabulary // _BLOCK * _BLOCK
    sums = [p_AV[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=-1)] if whole else []
    wide = widest(p_AV.device)
    running_AB = torch.cat([*sums, p_AV[:, whole:].sum(dim=-1, keepdim=True)], dim=1).to(wide).cumsum(dim=-1)
    target_A1 = _just_below(uniform_A[:, None].to(wide) * running_AB[:, -1:], running_AB[:, -1:])
    block_A1 = torch.searchsorted(running_AB, target_A1, right=True)
    before_A1 = running_AB.gather(1, (block_A1 - 1).clamp(min=0)).masked_fill(block_A1 == 0, 0.0)
    token_AB = block_A1 * _BLOCK + torch.arange(_BLOCK, device=p_AV.device)
    inside_AB = p_AV.gather(1, token_AB.clamp(max=vocabulary - 1)).to(wide) * (token_AB < vocabulary)
    running_AB = inside_AB.cumsum(dim=-1)
    target_A1 = _just_below(target_A1 - before_A1, running_AB[:, -1:])
    token_A1 = block_A1 * _BLOCK + torch.searchsorted(running_AB, target_A1, right=True)
    return token_A1.squeeze(1).clamp(max=vocabulary - 1)


def widest(device: torch.device) -> torch.dtype:
    """Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _log_p(p_AV: Tensor, token_A: Tensor) -> Tensor:
    return p_AV.gather(1, token_A[:, None]).squeeze(1).log()


def _just_below(target: Tensor, total: Tensor) -> Tensor:
    """The target, or the number before the total where rounding took it that far."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
