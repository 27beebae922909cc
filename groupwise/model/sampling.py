"""Prompts to completions, drawn from the active network of a policy, with the log-probs they were drawn with.

All prompts decode together, whatever their lengths; a prompt is prefilled once for all its completions; finished
completions leave the batch. Every completion has random numbers of its own, one per token, so what is drawn does not
depend on which others are decoded beside it, but for rounding: sums over another batch may differ in their last bit,
and a random number that falls on such a bit draws another token (in float32 about once in a million tokens).
The model's own generation settings (top-k and the like) are never applied. Knows nothing about rewards or training.

Legend: V vocabulary, A completions still being written, n completions of a prompt, T tokens of a completion.
"""

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from groupwise.groups import Completion
from groupwise.model.captured import check_capturable, write_captured
from groupwise.model.decoding import Network, Steps, steps_for
from groupwise.model.drafts import Drafts, Request
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.recorder import recorder_for


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
    seed and number give the same completions. Raises UnreadablePrompts where the network gives NaN, and UserError for
    `params.captured` where steps cannot be captured.
    """
    ends = frozenset(end_ids)
    if params.captured:
        check_capturable(engine)
    drawn: list[list[Completion]] = [[] for _ in prompts]
    with _laid_out(engine):
        for batch in _batches(prompts, max(1, params.rows_at_once // n), mixed_lengths=engine.method == "shared"):
            requests: list[Request] = []
            for i in batch:
                uniform_nT = _uniforms(seed, i if streams is None else streams[i], n, params.max_new_tokens)
                most = params.max_new_tokens if most_new_tokens is None else most_new_tokens[i]
                requests.append(Request(i, prompts[i], uniform_nT, min(most, params.max_new_tokens)))
            for i, completions in zip(batch, _answered(engine, requests, params, ends), strict=True):
                drawn[i] = completions
    return drawn


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

    It is the first completion that `sample_completions` draws with this seed and stream number. Its steps are never
    captured, for each token is looked at. Until the generator ends or is closed the policy stays laid out for sampling,
    so nothing else may run it meanwhile. Raises UnreadablePrompts where the network gives NaN.
    """
    request = Request(0, prompt, _uniforms(seed, stream, 1, params.max_new_tokens), params.max_new_tokens)
    with _laid_out(engine):
        steps = steps_for(engine, [prompt], 1)
        logits_AV = steps.first_logits()
        drafts = Drafts([request], params, end_ids, logits_AV)
        for token_A in _decode(engine, steps, logits_AV, drafts, params):
            yield int(token_A)
    return drafts.completions()[0][0]


@contextlib.contextmanager
def _laid_out(engine: LogprobEngine) -> Generator[None, None, None]:
    """Inside, the policy's layers are as the engine's method of decoding wants them."""
    policy = engine.policy
    layers = policy.without_recomputation() if engine.method == "shared" else policy.as_loaded()
    with layers, policy.for_sampling(engine.autocast_dtype):
        yield


def _answered(
    engine: LogprobEngine, requests: Sequence[Request], params: SamplingParams, end_ids: Iterable[int]
) -> list[list[Completion]]:
    """The completions of each request of a batch."""
    if params.captured:
        recorder = recorder_for(engine.policy.device)
        return write_captured(Network(engine), requests, params, end_ids, recorder).completions()
    steps = steps_for(engine, [one.prompt_ids for one in requests], len(requests[0].uniform_nT))
    logits_AV = steps.first_logits()
    drafts = Drafts(requests, params, end_ids, logits_AV)
    for _ in _decode(engine, steps, logits_AV, drafts, params):
        pass
    return drafts.completions()


def _decode(
    engine: LogprobEngine, steps: Steps, logits_AV: Tensor, drafts: Drafts, params: SamplingParams
) -> Iterator[Tensor]:
    """Write all drafts of a batch, from the logits of their first tokens on; gives the tokens of each step, [A]."""
    row_A = drafts.every_row
    for column in range(drafts.longest):
        token_A = drafts.write(logits_AV, row_A, column)
        if params.stop:
            drafts.finish(row_A[_stopped(engine, drafts.token_RT[row_A, : column + 1], params.stop)])
        kept = drafts.going_on(row_A)
        yield token_A
        if len(kept) == 0:
            break
        row_A = row_A[kept]
        logits_AV = steps.next_logits(token_A, kept)


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
