"""Prompts to scored groups: answers are asked for, read, and judged by the rewards. Knows no rollout and no loss."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import replace

from groupwise.data.text import TextEncoder
from groupwise.groups import Completion, Group, NotFinite, Unanswered
from groupwise.model.drafts import UnreadablePrompts
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.sampler import Answers, BuiltinSampler, Sampler
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import Fault, ScoredAnswers, Scorer
from grpo.advantages import Steps
from grpo.credit import ScoredGroup
from grpo.dataset_utils import Prompt


def ask_answers(
    sampler: Sampler,
    positions: int | None,
    prompts: Sequence[Prompt],
    *,
    n: int,
    params: SamplingParams,
    seed: int,
    streams: Sequence[int],
) -> Answers:
    """Ask for completions of every prompt, no longer than `positions`. Fetching raises NotFinite naming prompts."""
    answers = sampler.ask(
        [prompt.prompt_ids for prompt in prompts],
        n=n,
        params=params,
        seed=seed,
        streams=streams,
        most_new_tokens=None if positions is None else [positions - len(prompt.prompt_ids) for prompt in prompts],
    )

    def fetched() -> list[list[Completion]]:
        try:
            return answers()
        except UnreadablePrompts as fault:
            unread = [Unanswered(key=prompts[i].key, prompt_ids=prompts[i].prompt_ids) for i in fault.indices]
            raise NotFinite(fault.what, unread) from fault

    return fetched


def draw_answers(
    engine: LogprobEngine,
    encoder: TextEncoder,
    prompts: Sequence[Prompt],
    *,
    n: int,
    params: SamplingParams,
    seed: int,
    streams: Sequence[int],
) -> list[list[Completion]]:
    """Completions of every prompt from the active network. Raises NotFinite naming prompts."""
    sampler = BuiltinSampler(engine, encoder.stop_ids)
    return ask_answers(sampler, engine.policy.positions, prompts, n=n, params=params, seed=seed, streams=streams)()


def as_answers(
    encoder: TextEncoder, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]]
) -> tuple[list[Mapping[str, object]], list[Answer]]:
    """All completions as rewards see them, each with its row."""
    rows = [prompt.row for prompt, completions in zip(prompts, drawn, strict=True) for _ in completions]
    answers = [
        Answer(text=encoder.decode(c.token_ids), token_ids=c.token_ids, finished=c.finished, group=index)
        for index, completions in enumerate(drawn)
        for c in completions
    ]
    return rows, answers


def score_answers(
    scorer: Scorer, encoder: TextEncoder, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]]
) -> tuple[list[ScoredGroup], tuple[Fault, ...]]:
    """Score all completions and leave out those without a score; also what rewards did wrong."""
    rows, answers = as_answers(encoder, prompts, drawn)
    result = scorer.score(rows, answers, counted=False)
    faults = [0] * len(answers)
    for fault in result.faults:
        faults[fault.index] += 1
    weights = dict(zip(scorer.names, (reward.weight for reward in scorer.sections), strict=True))
    scored: list[ScoredGroup] = []
    start = 0
    for prompt, completions in zip(prompts, drawn, strict=True):
        part = slice(start, start + len(completions))
        places = [place for place in range(part.start, part.stop) if result.totals[place] is not None]
        kept = [
            replace(completion, score=total)
            for completion, total in zip(completions, result.totals[part], strict=True)
            if total is not None
        ]
        scored.append(
            ScoredGroup(
                Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(kept)) if kept else None,
                {name: values[part] for name, values in result.by_reward.items()},
                tuple(len(c.token_ids) for c in completions),
                tuple(c.finished for c in completions),
                sum(faults[part]),
                steps=tuple(_steps(result, place, weights, answers[place], encoder) for place in places),
                each={
                    name: tuple(values[place] for place in places)
                    for name, values in result.by_reward.items()
                    if weights[name]
                },
            )
        )
        start += len(completions)
    return scored, result.faults


def _steps(
    result: ScoredAnswers, place: int, weights: Mapping[str, float], answer: Answer, encoder: TextEncoder
) -> Steps:
    """The weighted step rewards of one completion, by token; the outcome rewards are one more step, at the end."""
    steps = [
        (end, weights[name] * value)
        for name, column in result.steps.items()
        for end, value in _by_token(column[place] or (), answer, encoder)
        if weights[name]
    ]
    outcome = result.outcomes[place]
    if outcome is not None or not steps:
        steps.append((len(answer.token_ids) - 1, outcome or 0.0))
    return sorted(steps, key=lambda step: step[0])


def _by_token(steps: Sequence[tuple[int, float]], answer: Answer, encoder: TextEncoder) -> list[tuple[int, float]]:
    """Steps by the token that holds their last character; one that ends with the text ends with the last token.

    So the end token, which has no text, belongs to the last step.
    """
    count = len(answer.token_ids)
    found: list[tuple[int, float]] = []
    for end, value in steps:
        place = count - 1
        if end < len(answer.text):
            lengths = _LengthOfText(answer.token_ids, encoder)
            place = min(bisect.bisect_left(lengths, end, lo=1, hi=count) - 1, count - 1)
        found.append((place, value))
    return found


class _LengthOfText(Sequence[int]):
    """Characters in the text of the first i tokens, decoded when asked for: a search asks for a few."""

    def __init__(self, token_ids: tuple[int, ...], encoder: TextEncoder) -> None:
        self._ids = token_ids
        self._encoder = encoder

    def __len__(self) -> int:
        return len(self._ids) + 1

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return len(self._encoder.decode(self._ids[:index]))


def given_answer(prompt: Prompt) -> ScoredGroup:
    """A row's own answer as what was learned from it: right by definition."""
    answer = prompt.answer
    if answer is None:
        raise ValueError(f"{prompt.key}: has no answer of its own")
    completion = Completion(token_ids=answer.token_ids, finished=answer.finished, score=1.0)
    length = len(answer.token_ids)
    group = Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=(completion,))
    return ScoredGroup(group, {}, (length,), (answer.finished,), 0, steps=(((length - 1, 1.0),),))
