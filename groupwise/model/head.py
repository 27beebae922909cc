"""The output head: hidden states to log-probs of chosen tokens, without ever holding all logits.

Logits are computed for a few tokens at a time and reduced at once. While they are there, the derivative of each
log-prob with respect to its hidden state is computed too - it depends on nothing that comes later - so the backward
pass is one multiplication and the vocabulary projection runs twice instead of three times. Only when the head itself
is trained are the logits computed again in the backward pass. Entropy and KL over the vocabulary are differentiated the
same way where a caller asks for it; otherwise they cost nothing.

Knows nothing about rows, prompts or attention.
Legend: T tokens, D hidden width, V vocabulary, C tokens of a chunk.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Logits held at once: 16 MiB in float32 stay in a processor's cache, 256 MiB fill a GPU.
_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}


@dataclass(frozen=True, slots=True, eq=False)
class OutputHead:
    """logits = softcap * tanh(scale * (hidden W^T + bias) / softcap); without a softcap just the scaled projection."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "OutputHead | None":
        """The head of a causal language model, or None when its last layer is no plain projection.

        The scale and the cap are read from the names that families give them in their configuration; `head_error`
        compares the result with the model's own logits.
        """
        layer = model.get_output_embeddings()
        if not isinstance(layer, nn.Linear):
            return None
        config = model.config.get_text_config()
        scale = 1.0
        for name, invert in (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False)):
            factor = getattr(config, name, None)
            if isinstance(factor, int | float):
                scale *= 1 / factor if invert else factor
        return cls(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))

    def frozen(self) -> "OutputHead":
        """The head as it is now, without gradients; weights that are put in its place later do not change it."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return replace(self, weight_VD=self.weight_VD.detach(), bias_V=bias_V)

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Logits of a few tokens, [C, V], in float32 or wider."""
        raw = nn.functional.linear(hidden_CD.to(self.weight_VD.dtype), self.weight_VD, self.bias_V)
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1.0:
            wide = wide * self.scale
        return wide if self.softcap is None else torch.tanh(wide / self.softcap) * self.softcap

    def token_logprobs(
        self,
        hidden_TD: Tensor,
        target_T: Tensor,
        *,
        temperature: float = 1.0,
        chunk: int | None = None,
        entropy_gradient: bool = False,
        reference: "Reference | None" = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs of the target tokens, entropies of the predictions, and their KL to a reference, all [T], in nats.

        Differentiable with respect to the hidden states, the weight and the bias: log-probs and KL always, entropies
        where `entropy_gradient` says so. The KL, over the whole vocabulary, is None without a `reference`.
        `temperature` divides all logits; `chunk` is the number of tokens whose logits exist at a time.

        >>> head = OutputHead(torch.eye(2), None)
        >>> logp_T, entropy_T, _ = head.token_logprobs(torch.zeros(1, 2), torch.tensor([1]))
        >>> logp_T, entropy_T
        (tensor([-0.6931]), tensor([0.6931]))
        """
        elements = _CHUNK_ELEMENTS.get(hidden_TD.device.type, 2**24)
        rows = chunk or max(1, elements // self.weight_VD.shape[0])
        task = _Task(self, temperature, rows, entropy_gradient, reference)
        logp_T, entropy_T, kl_T = _ChunkedLogprobs.apply(hidden_TD, self.weight_VD, self.bias_V, target_T, task)
        return logp_T, entropy_T, kl_T

    @torch.no_grad()
    def log_collision(self, hidden_TD: Tensor, *, temperature: float = 1.0, chunk: int | None = None) -> Tensor:
        """log sum_v p_v^2 of every prediction, [T], nats: how likely two draws agree. One more projection, no gradient.

        >>> OutputHead(torch.eye(2), None).log_collision(torch.zeros(1, 2))    # two tokens alike: log 1/2
        tensor([-0.6931])
        """
        rows = chunk or max(1, _CHUNK_ELEMENTS.get(hidden_TD.device.type, 2**24) // self.weight_VD.shape[0])
        parts = [log_collision(self.logits(part_CD) / temperature) for part_CD in hidden_TD.split(rows)]
        return torch.cat(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a KL over the vocabulary is to, without gradients: a head and the hidden states that it reads, [T, D].

    Without a head the states are logits, [T, V].
    """

    head: OutputHead | None
    states_T: Tensor


def log_collision(logits_TV: Tensor) -> Tensor:
    """log sum_v p_v^2, [T], nats, where p is the softmax of the logits.

    >>> log_collision(torch.tensor([[0.0, 0.0, 0.0, 0.0]]))    # four tokens alike: log 1/4
    tensor([-1.3863])
    """
    return (2 * logits_TV.log_softmax(dim=-1)).logsumexp(dim=-1)


@torch.no_grad()
def head_error(model: PreTrainedModel) -> str | None:
    """Why `OutputHead.of` must not be used for this model, or None when it gives the model's own logits."""
    head = OutputHead.of(model)
    if head is None:
        return "not a plain projection"
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, 8), generator=torch.Generator().manual_seed(0)).to(model.device)
    # Whatever a family does differently here, its own logits are there to be used instead.
    try:
        ours = head.logits(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
        theirs = model(input_ids=ids, use_cache=False).logits[0]
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    gap = (ours - theirs.to(ours.dtype)).abs().max().item()
    allowed = rounding(model.dtype) * max(1.0, theirs.abs().max().item())
    return None if gap <= allowed else f"logits differ from scale and cap of a plain projection by {gap:.2g}"


_MAGNIFIED = 10.0


def rounding(dtype: torch.dtype) -> float:
    """Relative difference that two orders of the same sums may have after the layers of a network."""
    return {torch.float64: 1e-7, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}[dtype]


def beyond_rounding(ours_T: Tensor, theirs_T: Tensor, *, rounding: float) -> float | None:
    """The largest difference of log-probs that should be equal, where rounding does not explain it; else None.

    A token in a hundred, or one, may differ ten times as much as the others: there are texts after which sums in
    another order are magnified (1.9e-4 nats of one token in float32, where 1e-5 is the most of hundreds).

    >>> logp_T = torch.full((300,), -2.0)
    >>> beyond_rounding(logp_T + 3e-5, logp_T, rounding=2e-5)
    >>> magnified_T = logp_T.clone()
    >>> magnified_T[7] += 2e-4
    >>> beyond_rounding(magnified_T, logp_T, rounding=2e-5)
    >>> magnified_T[:9] += 2e-4
    >>> round(beyond_rounding(magnified_T, logp_T, rounding=2e-5), 4)
    0.0004
    """
    gap_T = (ours_T.double().cpu() - theirs_T.double().cpu()).abs()
    allowed = rounding * max(1.0, theirs_T.abs().max().item())
    far = int((gap_T > allowed).sum())
    rounded = far <= max(1, len(gap_T) // 100) and bool((gap_T <= _MAGNIFIED * allowed).all())  # NaN is not
    return None if rounded else gap_T.max().item()


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """How the head is to be run, and which of its outputs have a gradient."""

    head: OutputHead
    temperature: float
    rows: int
    entropy_gradient: bool
    reference: Reference | None

    def parts(self, count: int) -> Iterator[slice]:
        """The chunks of `count` tokens."""
        return (slice(start, start + self.rows) for start in range(0, count, self.rows))

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Logits divided by the temperature; a pass over them is saved where there is nothing to divide."""
        logits_CV = self.head.logits(hidden_CD)
        return logits_CV if self.temperature == 1.0 else logits_CV / self.temperature

    def reference_logp(self, part: slice) -> Tensor | None:
        """Log-probs of the reference over the vocabulary, [C, V]."""
        if self.reference is None:
            return None
        states_C = self.reference.states_T[part]
        logits_CV = states_C if self.reference.head is None else self.reference.head.logits(states_C)
        return (logits_CV / self.temperature).log_softmax(dim=-1)

    def through_head(self, slope_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """From a slope by tempered logits to one by hidden W^T + bias; `slope_CV` is the caller's own and used up."""
        if self.head.softcap is not None:
            slope_CV *= 1 - (logits_CV * (self.temperature / self.head.softcap)) ** 2
        factor = self.head.scale / self.temperature
        return slope_CV if factor == 1.0 else slope_CV.mul_(factor)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_T: Tensor, task: _Task
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        keeps_slope = wants_hidden and not (wants_weight or wants_bias)
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        logp_T = torch.empty(len(target_T), dtype=dtype, device=hidden_TD.device)
        entropy_T = torch.empty_like(logp_T)
        kl_T = None if task.reference is None else torch.empty_like(logp_T)
        wanted = (keeps_slope, keeps_slope and task.entropy_gradient, keeps_slope and kl_T is not None)
        slopes = [torch.empty_like(hidden_TD) if one else None for one in wanted]
        for part in task.parts(len(target_T)):
            logits_CV = task.logits(hidden_TD[part])
            logp_CV = logits_CV.log_softmax(dim=-1)
            logp_T[part] = logp_CV.gather(1, target_T[part, None]).squeeze(1)
            p_CV = logits_CV.softmax(dim=-1)  # one fused pass, faster than exponentials of logp_CV
            entropy_T[part] = -torch.linalg.vecdot(p_CV, logp_CV)
            by_entropy, by_kl = slopes[1:]
            if by_entropy is not None:
                slope_CV = task.through_head(_entropy_slope(p_CV, logp_CV, entropy_T[part]), logits_CV)
                by_entropy[part] = slope_CV.to(weight_VD.dtype) @ weight_VD
            if kl_T is not None:
                reference_CV = task.reference_logp(part)
                assert reference_CV is not None
                kl_T[part] = torch.linalg.vecdot(p_CV, logp_CV - reference_CV)
                if by_kl is not None:
                    slope_CV = task.through_head(_kl_slope(p_CV, logp_CV, reference_CV, kl_T[part]), logits_CV)
                    by_kl[part] = slope_CV.to(weight_VD.dtype) @ weight_VD
            if slopes[0] is not None:
                slope_CV = task.through_head(_logp_slope(p_CV, target_T[part]), logits_CV)
                slopes[0][part] = slope_CV.to(weight_VD.dtype) @ weight_VD
        ctx.keeps_slope, ctx.task = keeps_slope, task
        if keeps_slope:
            ctx.save_for_backward(*slopes)
        else:
            ctx.save_for_backward(hidden_TD, weight_VD, bias_V, target_T)
        if not task.entropy_gradient:
            ctx.mark_non_differentiable(entropy_T)
        return logp_T, entropy_T, kl_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.keeps_slope:
            terms = [
                grad_T.to(slope_TD.dtype)[:, None] * slope_TD
                for grad_T, slope_TD in zip(grads, ctx.saved_tensors, strict=True)
                if slope_TD is not None
            ]
            return (functools.reduce(torch.add, terms), *[None] * 4)
        hidden_TD, weight_VD, bias_V, target_T = ctx.saved_tensors
        task: _Task = ctx.task
        by_logp_T, by_entropy_T, by_kl_T = grads
        wide = by_logp_T.dtype
        grad_hidden = torch.empty_like(hidden_TD)
        grad_weight = torch.zeros_like(weight_VD, dtype=wide)
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=wide)
        for part in task.parts(len(target_T)):
            logits_CV = task.logits(hidden_TD[part])
            p_CV = logits_CV.softmax(dim=-1)
            rest_CV = torch.zeros((), dtype=wide, device=p_CV.device)
            if task.entropy_gradient or task.reference is not None:
                logp_CV = logits_CV.log_softmax(dim=-1)
                if task.entropy_gradient:
                    entropy_C = -torch.linalg.vecdot(p_CV, logp_CV)
                    rest_CV = by_entropy_T[part, None] * _entropy_slope(p_CV, logp_CV, entropy_C)
                reference_CV = task.reference_logp(part)
                if reference_CV is not None:
                    kl_C = torch.linalg.vecdot(p_CV, logp_CV - reference_CV)
                    rest_CV = rest_CV + by_kl_T[part, None] * _kl_slope(p_CV, logp_CV, reference_CV, kl_C)
            slope_CV = _logp_slope(p_CV, target_T[part])
            slope_CV *= by_logp_T[part, None]
            slope_CV = task.through_head(slope_CV.add_(rest_CV), logits_CV)
            grad_hidden[part] = slope_CV.to(weight_VD.dtype) @ weight_VD
            grad_weight += slope_CV.T @ hidden_TD[part].to(wide)
            if grad_bias is not None:
                grad_bias += slope_CV.sum(dim=0)
        cast_bias = None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype)
        return (grad_hidden, grad_weight.to(weight_VD.dtype), cast_bias, None, None)


def _logp_slope(p_CV: Tensor, target_C: Tensor) -> Tensor:
    """d log p(target) / d logits = 1[target] - p, [C, V]; `p_CV` belongs to the caller's chunk and is used up."""
    slope_CV = p_CV.neg_()
    return slope_CV.scatter_add_(1, target_C[:, None], torch.ones_like(target_C[:, None], dtype=p_CV.dtype))


def _entropy_slope(p_CV: Tensor, logp_CV: Tensor, entropy_C: Tensor) -> Tensor:
    """d H / d logits = -p (log p + H), [C, V]."""
    return (logp_CV + entropy_C[:, None]).mul_(p_CV).neg_()


def _kl_slope(p_CV: Tensor, logp_CV: Tensor, reference_CV: Tensor, kl_C: Tensor) -> Tensor:
    """d KL(p || q) / d logits of p = p (log p - log q - KL), [C, V]."""
    return (logp_CV - reference_CV).sub_(kl_C[:, None]).mul_(p_CV)
