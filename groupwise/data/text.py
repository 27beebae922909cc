"""Text to token ids: a prompt and its completions, plain or as chat messages. Knows nothing of scores, files or models.

Prompt and completion are tokenized apart and joined as ids, so that what a completion is never depends on where the
prompt happens to end. A prompt that is too long is never shortened: it would be another question.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from groupwise.errors import UserError, listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, object]  # {"role": ..., "content": ...}
Text: TypeAlias = str | Sequence[Message]
TooLong: TypeAlias = Literal["drop", "cut_completion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGroup:
    """A prompt and completions of it as people wrote them, each a text or a list of chat messages."""

    key: str
    prompt: Text
    completions: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class EncodedCompletion:
    """Ids of one completion; `finished` says that the id which ends a completion stands last."""

    token_ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedGroup:
    """Ids of a prompt and of its completions, in the order given; None stands for what was too long."""

    key: str
    prompt_ids: tuple[int, ...] | None
    completions: tuple[EncodedCompletion | None, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A group that cannot be encoded, and why: "key: what is wrong; remedy"."""

    problem: str


class _Unusable(Exception):
    """What is wrong with one text."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    """Texts as the tokenizer gets them; the chat template has already written its special tokens."""

    prompt: str
    completions: tuple[str, ...]
    is_chat: bool


class TextEncoder:
    """Encodes prompts and completions with one tokenizer.

    A plain prompt gets the special tokens that the tokenizer itself puts in front of a text (a beginning-of-sequence
    token, if any), a chat prompt those of the chat template, a completion none. Every whole completion ends with one
    of `stop_ids`: the tokenizer's end-of-sequence token, or the token with which the chat template ends an assistant
    turn. `too_long` says what becomes of a completion of more than `max_completion_tokens`, that last id included:
    dropped, or cut and then unfinished. `template_options` are handed to the chat template (enable_thinking=False).
    Raises UserError for a tokenizer without an end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_prompt_tokens: int,
        max_completion_tokens: int,
        too_long: TooLong = "drop",
        template_options: Mapping[str, object] | None = None,
    ) -> None:
        if max_prompt_tokens < 1 or max_completion_tokens < 1:
            raise ValueError("max_prompt_tokens and max_completion_tokens must be at least 1")
        self._tokenizer: Any = tokenizer  # its methods are typed by unions too wide to use
        if self._tokenizer.eos_token is None:
            raise UserError(
                f"the tokenizer of {self._tokenizer.name_or_path or 'the model'} has no end-of-sequence token, so no "
                "completion could end; set eos_token in its tokenizer_config.json"
            )
        self.max_prompt_tokens = max_prompt_tokens
        self.max_completion_tokens = max_completion_tokens
        self.too_long: TooLong = too_long
        self._template_options = dict(template_options or {})
        self._eos: str = self._tokenizer.eos_token
        self._eos_id: int = self._tokenizer.eos_token_id
        self._opening = self._opening_ids()
        self._lead_in = self._lead_in_ids()
        self._turn_end = self._turn_end_token()
        ends = [self._eos] if self._turn_end is None else [self._eos, self._turn_end]
        self.stop_ids: frozenset[int] = frozenset(self._tokenizer.convert_tokens_to_ids(ends))
        """Ids that end a completion: a sampler stops at each of them."""

    # --- what callers ask

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be encoded."""
        return bool(self._tokenizer.chat_template)

    def encode(self, groups: Sequence[TextGroup]) -> list[EncodedGroup | Refused]:
        """Encode all groups in one pass of the tokenizer, in the order given; a group with a fault is Refused."""
        rendered = [self._rendered_or_refused(group) for group in groups]
        usable = [texts for texts in rendered if isinstance(texts, _Rendered)]
        prompts = iter(self._prompt_ids(usable))
        completions = iter(self._completion_ids([text for texts in usable for text in texts.completions]))
        return [
            texts if isinstance(texts, Refused) else self._encoded(group.key, texts, next(prompts), completions)
            for group, texts in zip(groups, rendered, strict=True)
        ]

    def encode_prompts(self, keys: Sequence[str], prompts: Sequence[Text]) -> list[tuple[int, ...] | None]:
        """Ids of each prompt, None for a prompt longer than `max_prompt_tokens`.

        Raises UserError that lists every prompt which cannot be encoded.
        """
        encoded = self.encode(
            [TextGroup(key=key, prompt=prompt, completions=()) for key, prompt in zip(keys, prompts, strict=True)]
        )
        if problems := [group.problem for group in encoded if isinstance(group, Refused)]:
            raise UserError(listed(problems))
        return [group.prompt_ids for group in encoded if isinstance(group, EncodedGroup)]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer itself, to show ids with their special tokens."""
        return self._tokenizer

    @property
    def turn_end(self) -> str | None:
        """The special token that the chat template writes behind an assistant's words; None: it has none."""
        return self._turn_end

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, without special tokens: what a reward function or a reader sees."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # --- what the tokenizer does by itself, found out once

    def _opening_ids(self) -> tuple[int, ...]:
        """The special tokens that this tokenizer puts in front of a text (those behind it would end the prompt)."""
        bare, full = self._ids(["a"])[0], self._ids(["a"], add_special_tokens=True)[0]
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), None)
        if start is None:
            raise UserError(
                f"the tokenizer of {self._tokenizer.name_or_path or 'the model'} changes a text when it adds its "
                "special tokens, so a prompt cannot be encoded; use a tokenizer that puts them before or behind it"
            )
        return tuple(full[:start])

    def _lead_in_ids(self) -> tuple[int, ...]:
        """Ids of a line break that completions are tokenized behind, if the tokenizer treats a text's start specially.

        Some tokenizers put a space before the first word of every text. In the middle of a sequence, where
        completions stand, the model never saw that space; behind a line break it is not put, and the line break's
        ids are taken off again.
        """
        line_break, both, alone = self._ids(["\n", "\na", "a"])
        starts_alike = both[: len(line_break)] == line_break
        return tuple(line_break) if starts_alike and both[len(line_break) :] != alone else ()

    def _turn_end_token(self) -> str | None:
        """The special token that the chat template writes behind an assistant's words, if it has one."""
        if not self._tokenizer.chat_template:
            return None
        question: Message = {"role": "user", "content": "Anna asks."}
        answer: Message = {"role": "assistant", "content": "Bert answers."}
        try:
            behind = self._template([question, answer]).rpartition("Bert answers.")[2]
        except _Unusable:  # a template that wants more than these two turns; completions get the end of sequence
            return None
        special = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        written = [token for token in special if token in behind]
        return min(written, key=lambda token: (behind.index(token), -len(token)), default=None)

    # --- text

    def _rendered_or_refused(self, group: TextGroup) -> _Rendered | Refused:
        try:
            return self._rendered(group)
        except _Unusable as unusable:
            return Refused(f"{group.key}: {unusable}")

    def _rendered(self, group: TextGroup) -> _Rendered:
        if isinstance(group.prompt, str):
            texts = [group.prompt]
            for completion in group.completions:
                if not isinstance(completion, str):
                    raise _Unusable(
                        "the prompt is a text, a completion chat messages; give both as texts or both as messages"
                    )
                texts.append(completion)
            _check_encodable(texts)
            return _Rendered(group.prompt, tuple(texts[1:]), is_chat=False)
        if not self._tokenizer.chat_template:
            raise _Unusable(
                "the row holds chat messages, but the tokenizer has no chat template; use an instruction-tuned model, "
                "put a chat_template.jinja beside the tokenizer, or give the prompt as text"
            )
        answers = [_assistant_turn(completion) for completion in group.completions]
        _check_encodable(self._contents([*group.prompt, *answers]))
        prompt = self._template(group.prompt, add_generation_prompt=True)
        return _Rendered(
            prompt, tuple(self._answer_text(group.prompt, prompt, answer) for answer in answers), is_chat=True
        )

    def _contents(self, messages: Iterable[Message]) -> list[str]:
        """Each message's words, checked: the template's own end tokens are allowed to the template alone."""
        contents: list[str] = []
        for message in messages:
            content = message.get("content")
            if not isinstance(message.get("role"), str) or not isinstance(content, str):
                raise _Unusable('a chat message is {"role": text, "content": text}; this one has another shape')
            for token in (self._eos, self._turn_end):
                if token is not None and token in content:
                    raise _Unusable(f"a message contains {token!r}, which ends a turn; remove it from the text")
            contents.append(content)
        return contents

    def _template(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._template_options,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise _Unusable(f"the chat template refuses these messages ({error}); mend the messages") from error

    def _answer_text(self, messages: Sequence[Message], prompt: str, answer: Message) -> str:
        """What the template adds to the prompt for this answer, up to the token that ends the turn."""
        whole = self._template([*messages, answer])
        if not whole.startswith(prompt):
            raise _Unusable(
                "the chat template writes the prompt otherwise when an answer follows, so the answer cannot be told "
                "apart from it; use a template (or its options) whose generation prompt is how an answer begins"
            )
        text = whole[len(prompt) :]
        end = self._turn_end
        if end is None or end not in text:
            return text
        return text[: text.rindex(end) + len(end)]

    # --- ids

    def _ids(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        encoding = self._tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            padding=False,
            truncation=False,  # said aloud, because a tokenizer's file may switch it on
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # we know the lengths; the warning about the model's limit is not for here
        )
        return encoding["input_ids"]

    def _prompt_ids(self, rendered: Sequence[_Rendered]) -> list[tuple[int, ...]]:
        opening = self._opening
        all_ids: list[tuple[int, ...]] = []
        for texts, ids in zip(rendered, self._ids([texts.prompt for texts in rendered]), strict=True):
            written = texts.is_chat or tuple(ids[: len(opening)]) == opening
            all_ids.append(tuple(ids) if written else (*opening, *ids))
        return all_ids

    def _completion_ids(self, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Ids of each completion as it reads behind a prompt; None where the tokenizer joins it to the line before."""
        lead_in = self._lead_in
        if not lead_in:
            return [tuple(ids) for ids in self._ids(texts)]
        behind = [tuple(ids) for ids in self._ids(["\n" + text for text in texts])]
        return [ids[len(lead_in) :] if ids[: len(lead_in)] == lead_in else None for ids in behind]

    def _encoded(
        self,
        key: str,
        texts: _Rendered,
        prompt_ids: tuple[int, ...],
        completion_ids: Iterator[tuple[int, ...] | None],
    ) -> EncodedGroup | Refused:
        ids_of_each = [next(completion_ids) for _ in texts.completions]
        try:
            self._check_prompt(prompt_ids, texts.is_chat)
            completions = tuple(self._completion(ids) for ids in ids_of_each)
        except _Unusable as unusable:
            return Refused(f"{key}: {unusable}")
        fits = len(prompt_ids) <= self.max_prompt_tokens
        return EncodedGroup(key=key, prompt_ids=prompt_ids if fits else None, completions=completions)

    def _check_prompt(self, prompt_ids: tuple[int, ...], is_chat: bool) -> None:
        # A chat template ends earlier turns with the same token, and an opening may be the same token: both are meant.
        own = prompt_ids[len(self._opening) :] if prompt_ids[: len(self._opening)] == self._opening else prompt_ids
        if not own:
            raise _Unusable("the prompt is no tokens long; give at least one")
        if not is_chat and self._eos_id in own:
            raise _Unusable(f"the prompt contains {self._eos!r}, which ends a text; remove it from the text")

    def _completion(self, ids: tuple[int, ...] | None) -> EncodedCompletion | None:
        if ids is None:
            raise _Unusable("the tokenizer joins the start of a completion to what stands before it; use another one")
        whole = ids if ids and ids[-1] in self.stop_ids else (*ids, self._eos_id)
        if len(whole) == 1:
            raise _Unusable("a completion is no tokens long; give at least one")
        if self._eos_id in whole[:-1]:
            raise _Unusable(f"a completion contains {self._eos!r} before its end; remove it from the text")
        if len(whole) <= self.max_completion_tokens:
            return EncodedCompletion(whole, finished=True)
        if self.too_long == "drop":
            return None
        return EncodedCompletion(whole[: self.max_completion_tokens], finished=False)


def _assistant_turn(completion: Text) -> Message:
    if isinstance(completion, str):
        return {"role": "assistant", "content": completion}
    if len(completion) != 1 or completion[0].get("role") != "assistant":
        roles = ", ".join(str(message.get("role")) for message in completion)
        raise _Unusable(f"a completion is one assistant message, this one is: {roles or 'no message'}")
    return completion[0]


def _check_encodable(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _Unusable(
                f"character {error.start + 1} of a text is half a surrogate pair, which is no text; remove it"
            ) from error
