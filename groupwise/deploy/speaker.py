"""Answers of the base and of the tuned model of a run, as a stream of text. Knows no terminal and no page."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from groupwise.data.text import TextEncoder
from groupwise.deploy.prompt_form import Exchange, PromptForm
from groupwise.errors import UserError
from groupwise.model.drafts import UnreadablePrompts
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.sampling import stream_completion

Voice = Literal["base", "tuned"]
VOICES: tuple[Voice, Voice] = ("base", "tuned")
_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Dice:
    """What may differ between answers to one prompt: the temperature, and the seed of the random numbers."""

    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature {self.temperature:g}: must be from 0 (the likeliest token) to 100")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: must be 0 or more")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said; `cut` says why it did not come to its own end, and is empty where it did."""

    text: str
    tokens: int
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A text that a person typed, how it was answered, and by whom."""

    prompt: str
    dice: Dice
    answers: Mapping[Voice, Answer]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        answers = {
            voice: {"text": answer.text, "tokens": answer.tokens, "finished": not answer.cut}
            for voice, answer in self.answers.items()
        }
        return {"prompt": self.prompt, "temperature": self.dice.temperature, "seed": self.dice.seed, **answers}


class Speaker:
    """Base and tuned model of one run. One answer at a time: beginning another ends the one before."""

    def __init__(self, engine: LogprobEngine, encoder: TextEncoder, form: PromptForm, params: SamplingParams) -> None:
        self.form = form
        self.params = params
        self._engine = engine
        self._encoder = encoder
        self._speaking: Generator[int, None, None] | None = None

    def answer(self, voice: Voice, before: Sequence[Turn], typed: str, dice: Dice) -> Generator[str, None, Answer]:
        """The answer piece by piece as it is drawn, and at the end as a whole; the same dice give the same answer.

        In a chat the model is told what was said `before`; of a turn that it did not answer itself, what the other one
        said. Raises UserError for a text that is too long or cannot be encoded, and for a model that gives NaN.
        """
        prompt = self._prompt_ids(voice, before, typed)
        params = replace(self.params, temperature=dice.temperature)
        room = self._room(len(prompt))
        shortened = room is not None and room < params.max_new_tokens
        if room is not None and shortened:
            params = replace(params, max_new_tokens=room)
        ids: list[int] = []
        text = ""
        self.stop()
        self._speaking = self._drawn(voice, prompt, params, dice.seed)
        with contextlib.closing(self._speaking) as drawn:
            for token in drawn:
                ids.append(token)
                whole = self._encoder.decode(ids)
                if not whole.endswith(_HALF_A_CHARACTER):
                    yield whole[len(text) :]
                    text = whole
        whole = self._encoder.decode(ids)
        if whole != text:
            yield whole[len(text) :]
        ended = ids[-1] in self._encoder.stop_ids or any(stop in whole for stop in params.stop)
        limit = "the model has no more positions" if shortened else f"the run's limit of {params.max_new_tokens} tokens"
        return Answer(whole, len(ids), cut="" if ended else limit)

    def stop(self) -> None:
        """End an answer that nobody listens to any more, and put the policy back as it was."""
        if self._speaking is not None:
            self._speaking.close()
            self._speaking = None

    def _drawn(
        self, voice: Voice, prompt: Sequence[int], params: SamplingParams, seed: int
    ) -> Generator[int, None, None]:
        with self._engine.policy.base() if voice == "base" else contextlib.nullcontext():
            try:
                yield from stream_completion(
                    self._engine, prompt, params=params, end_ids=self._encoder.stop_ids, seed=seed
                )
            except UnreadablePrompts as fault:
                raise UserError(f"the {voice} model cannot read this text: {fault}") from fault

    def _prompt_ids(self, voice: Voice, before: Sequence[Turn], typed: str) -> tuple[int, ...]:
        said = [Exchange(turn.prompt, _heard_by(voice, turn)) for turn in before]
        [ids] = self._encoder.encode_prompts(["your text"], [self.form.written(said, typed)])
        if ids is None:
            raise UserError(f"your text is more than {self._encoder.max_prompt_tokens} tokens long; shorten it")
        room = self._room(len(ids))
        if room is not None and room < 1:
            remedy = "shorten it, or begin anew with /new" if self.form.chat and before else "shorten it"
            raise UserError(
                f"your text is {len(ids)} tokens long as the model reads it, and the model has "
                f"{self._engine.policy.positions} positions for text and answer; {remedy}"
            )
        return ids

    def _room(self, prompt_length: int) -> int | None:
        """Tokens that an answer may have; None: no end."""
        positions = self._engine.policy.positions
        return None if positions is None else positions - prompt_length


def _heard_by(voice: Voice, turn: Turn) -> str:
    answer = turn.answers.get(voice) or next(iter(turn.answers.values()))
    return answer.text
