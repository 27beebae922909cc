"""Prompts to completions, drawn from the active network of a policy, with the log-probs they were drawn with.

All prompts decode together, whatever their lengths; a prompt is prefilled once for all its completions; finished
completions leave the batch. Every completion has random numbers of its own, one per token, so what is drawn does not
depend on which others are decoded beside it, but for rounding: sums over another batch may differ in their last bit,
and a random number that falls on such a bit draws another token (in float32 about once in a million tokens).
The model's own generation settings (top-k and the like) are never applied. Knows nothing about rewards or training.

Legend: V vocabulary, A completions still being written, R completions of the batch, B tokens of a block.
"""

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from groupwise.groups import Completion, NotFinite
from groupwise.model.decoding import Steps, steps_for
from groupwise.model.engine import LogprobEngine
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
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    rows_at_once: int = 512

    @classmethod
    def of(cls, section: SamplingSection) -> "SamplingParams":
        """As configured."""
        return cls(**{field.name: getattr(section, field.name) for field in fields(cls)})

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn."""
        return self.temperature > 0 and (self.top_k is not None or self.top_p < 1 or self.min_p > 0)


@torch.no_grad()
def sample_completions(
    engine: LogprobEngine,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    params: SamplingParams,
    end_ids: Iterable[int],
    seed: int,
    streams: Sequence[int] | None = None,
    most_new_tokens: Sequence[int] | None = None,
) -> list[list[Completion]]:
    """Draw `n` completions of every prompt; `completions[i][j]` is the j-th answer to prompt i, score 0.

    A completion ends with the first of `end_ids`, with a stop text, or is cut after `params.max_new_tokens`, or after
    `most_new_tokens[i]` where that is fewer. `sampled_logp` is under the whole distribution at the temperature (1 for
    temperature 0), which is what the engine computes; `drawn_logp` is under the distribution drawn from, and only there
    where tokens were cut off. `streams[i]` numbers the random stream of prompt i (default: its place): the same
    seed and number give the same completions. Raises UnreadablePrompts where the network gives NaN.
    """
    drafts = [
        _Drafts(
            index,
            _uniforms(seed, stream, n, params.max_new_tokens),
            params.max_new_tokens if most_new_tokens is None else min(most_new_tokens[index], params.max_new_tokens),
        )
        for index, stream in enumerate(streams if streams is not None else range(len(prompts)))
    ]
    ends = torch.tensor(sorted(set(end_ids)), device=engine.policy.device)
    with _laid_out(engine):
        for batch in _batches(prompts, max(1, params.rows_at_once // n), mixed_lengths=engine.method == "shared"):
            steps = steps_for(engine, [prompts[i] for i in batch], n)
            for _ in _decode(engine, steps, [drafts[i] for i in batch], params, ends):
                pass
    return [own.completions() for own in drafts]


@torch.no_grad()
def stream_completion(
    engine: LogprobEngine,
    prompt: Sequence[int],
    *,
    params: SamplingParams,
    end_ids: Iterable[int],
    seed: int,
    stream: int = 0,
) -> Generator[int, None, Completion]:
    """One completion of one prompt, id by id as they are drawn, and at the end as a whole.

    It is the first completion that `sample_completions` draws with this seed and stream number. Until the generator
    ends or is closed the policy stays laid out for sampling, so nothing else may run it meanwhile. Raises
    UnreadablePrompts where the network gives NaN.
    """
    draft = _Drafts(0, _uniforms(seed, stream, 1, params.max_new_tokens), params.max_new_tokens)
    ends = torch.tensor(sorted(set(end_ids)), device=engine.policy.device)
    with _laid_out(engine):
        for token_A in _decode(engine, steps_for(engine, [prompt], 1), [draft], params, ends):
            yield int(token_A)
    return draft.completions()[0]


class UnreadablePrompts(NotFinite):
    """The network gives no probabilities for what follows `prompts[i]`, i being one of `indices`."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__("next-token probabilities are")
        self.indices = indices


class _Drafts:
    """The completions of one prompt while they are written."""

    def __init__(self, index: int, uniforms: Tensor, limit: int) -> None:
        self.index = index  # of the prompt
        self.uniforms = uniforms  # [n, max_new_tokens]
        self.limit = limit
        self.token_ids: Tensor  # [n, tokens]; filled in when decoding has ended
        self.logp: Tensor
        self.drawn_logp: Tensor | None
        self.length: list[int]
        self.finished: list[bool]

    def completions(self) -> list[Completion]:
        ids: list[list[int]] = self.token_ids.tolist()
        return [
            Completion(
                token_ids=tuple(ids[j][:length]),
                finished=finished,
                score=0.0,
                sampled_logp=self.logp[j, :length].clone(),
                drawn_logp=None if self.drawn_logp is None else self.drawn_logp[j, :length].clone(),
            )
            for j, (length, finished) in enumerate(zip(self.length, self.finished, strict=True))
        ]


@contextlib.contextmanager
def _laid_out(engine: LogprobEngine) -> Generator[None, None, None]:
    """Inside, the policy's layers are as the engine's method of decoding wants them."""
    policy = engine.policy
    layers = policy.without_recomputation() if engine.method == "shared" else policy.as_loaded()
    with layers, policy.for_sampling(engine.autocast_dtype):
        yield


def _decode(
    engine: LogprobEngine, steps: Steps, drafts: Sequence[_Drafts], params: SamplingParams, ends: Tensor
) -> Iterator[Tensor]:
    """Write all completions of a batch; gives the tokens of each step, [A]. The drafts are filled in at the end."""
    device = ends.device
    n = len(drafts[0].uniforms)
    uniform_RT = torch.cat([own.uniforms for own in drafts]).to(device, _widest(device))
    limit_R = torch.tensor([own.limit for own in drafts for _ in range(n)], device=device)
    rows, most = len(limit_R), int(limit_R.max())
    token_RT = torch.zeros(rows, most, dtype=torch.long, device=device)
    logits_AV = steps.first_logits()
    wide = torch.promote_types(logits_AV.dtype, torch.float32)
    logp_RT = torch.zeros(rows, most, dtype=wide, device=device)
    drawn_RT = torch.zeros_like(logp_RT) if params.truncates else None
    length_R = torch.zeros(rows, dtype=torch.long, device=device)
    finished_R = torch.zeros(rows, dtype=torch.bool, device=device)
    active = torch.arange(rows, device=device)
    for step in range(most):
        p_AV = _probabilities(logits_AV, params.temperature)
        unreadable_A = ~torch.isfinite(p_AV[:, 0])  # one bad logit spoils the softmax of its whole row
        if unreadable_A.any():
            raise UnreadablePrompts(sorted({drafts[row // n].index for row in active[unreadable_A].tolist()}))
        token_A, logp_A, drawn_A = _draw(p_AV, uniform_RT[active, step], params)
        token_RT[active, step], logp_RT[active, step] = token_A, logp_A
        if drawn_RT is not None:
            drawn_RT[active, step] = drawn_A
        length_R[active] = step + 1
        yield token_A
        ended_A = torch.isin(token_A, ends)
        if params.stop:
            ended_A |= _stopped(engine, token_RT[active, : step + 1], params.stop)
        finished_R[active] = ended_A
        kept = (~ended_A & (limit_R[active] > step + 1)).nonzero().squeeze(1)
        if len(kept) == 0:
            break
        active = active[kept]
        logits_AV = steps.next_logits(token_A, kept)
    for index, own in enumerate(drafts):
        part = slice(index * n, (index + 1) * n)
        own.token_ids, own.logp = token_RT[part].cpu(), logp_RT[part].cpu()
        own.drawn_logp = None if drawn_RT is None else drawn_RT[part].cpu()
        own.length, own.finished = length_R[part].tolist(), finished_R[part].tolist()


def _probabilities(logits_AV: Tensor, temperature: float) -> Tensor:
    wide = logits_AV.to(torch.promote_types(logits_AV.dtype, torch.float32))
    return (wide / temperature if temperature not in (0, 1) else wide).softmax(dim=-1)


def _draw(p_AV: Tensor, uniform_A: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row; its log-prob under the whole distribution, and under the one drawn from."""
    if params.temperature == 0:
        token_A = p_AV.argmax(dim=-1)
        logp_A = _log_p(p_AV, token_A)
        return token_A, logp_A, torch.zeros_like(logp_A)
    kept_AV = _truncated(p_AV, params) if params.truncates else p_AV
    token_A = _search(kept_AV, uniform_A)
    logp_A = _log_p(p_AV, token_A)
    drawn_A = logp_A - kept_AV.sum(dim=-1).log() if params.truncates else logp_A
    return token_A, logp_A, drawn_A


def _log_p(p_AV: Tensor, token_A: Tensor) -> Tensor:
    return p_AV.gather(1, token_A[:, None]).squeeze(1).log()


def _truncated(p_AV: Tensor, params: SamplingParams) -> Tensor:
    """The probabilities with those of tokens that must not be drawn set to 0; they no longer sum to 1."""
    ordered_AV, token_AV = p_AV.sort(dim=-1, descending=True, stable=True)
    keep_AV = torch.ones_like(ordered_AV, dtype=torch.bool)
    if params.top_k is not None:
        keep_AV[:, params.top_k :] = False
    if params.top_p < 1:
        left_AV = ordered_AV * keep_AV
        before_AV = left_AV.cumsum(dim=-1) - left_AV
        keep_AV &= before_AV < params.top_p * left_AV.sum(dim=-1, keepdim=True)
    keep_AV &= ordered_AV >= params.min_p * ordered_AV[:, :1]
    return torch.zeros_like(p_AV).scatter(1, token_AV, ordered_AV * keep_AV)


def _search(p_AV: Tensor, uniform_A: Tensor) -> Tensor:
    """The token at which each row's cumulative sum passes the row's uniform number in [0, 1).

    Sums of blocks come first and only the block that matters is summed token by token: a sum is several times cheaper
    than a running sum. Rounding can never end at a token of probability 0.
    """
    whole = p_AV.shape[1] // _BLOCK * _BLOCK
    sums = [p_AV[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=-1)] if whole else []
    wide = _widest(p_AV.device)
    running_AB = torch.cat([*sums, p_AV[:, whole:].sum(dim=-1, keepdim=True)], dim=1).to(wide).cumsum(dim=-1)
    target_A1 = _just_below(uniform_A[:, None].to(wide) * running_AB[:, -1:], running_AB[:, -1:])
    block_A1 = torch.searchsorted(running_AB, target_A1, right=True)
    before_A1 = torch.where(block_A1 > 0, running_AB.gather(1, (block_A1 - 1).clamp(min=0)), 0.0)
    token_AB = block_A1 * _BLOCK + torch.arange(_BLOCK, device=p_AV.device)
    inside_AB = p_AV.gather(1, token_AB.clamp(max=p_AV.shape[1] - 1)).to(wide) * (token_AB < p_AV.shape[1])
    running_AB = inside_AB.cumsum(dim=-1)
    target_A1 = _just_below(target_A1 - before_A1, running_AB[:, -1:])
    return (block_A1 * _BLOCK + torch.searchsorted(running_AB, target_A1, right=True)).squeeze(1)


def _widest(device: torch.device) -> torch.dtype:
    """Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _just_below(target: Tensor, total: Tensor) -> Tensor:
    """The target, or the number before the total where rounding took it that far."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))


def _stopped(engine: LogprobEngine, token_AT: Tensor, stop: Sequence[str]) -> Tensor:
    """Which rows contain a stop text, [A] bool; only a tail that is long enough is looked at."""
    tail = max(len(text.encode()) for text in stop) + 4  # a token holds at least one byte
    rows: list[list[int]] = token_AT[:, -tail:].tolist()
    texts: list[str] = engine.policy.tokenizer.batch_decode(rows, skip_special_tokens=False)
    return torch.tensor([any(one in text for one in stop) for text in texts], device=token_AT.device)


def _uniforms(seed: int, stream: int, n: int, length: int) -> Tensor:
    """[n, length] numbers in [0, 1) that depend on the seed and the stream's number alone."""
    digest = hashlib.sha256(f"{seed} {stream}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(n, length, generator=generator, dtype=torch.float64)


def _batches(prompts: Sequence[Sequence[int]], most: int, *, mixed_lengths: bool) -> list[list[int]]:
    """Indices of the prompts by length, cut into batches of at most `most` prompts, of one length unless mixed."""
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        fits = batches and len(batches[-1]) < most
        if fits and (mixed_lengths or len(prompts[batches[-1][0]]) == len(prompts[index])):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
