"""How a run wrote its prompts, so that what a person types reaches the model in the same form. Knows no terminal."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from groupwise.data.text import Message, Text, TextEncoder

_PROBE = "Anna asks."


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was asked and what was answered, both as text."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """What a typed text is put into before the model reads it.

    chat       the text is a user's message to the chat template, and what was said before stands in front of it;
               otherwise the model continues the text, and knows nothing of what was said before
    template   what the text is put into first
    system     system message in front of a chat
    ending     white space that every text prompt of the run ends with; added where it is missing
    """

    chat: bool
    template: str = "{prompt}"
    system: str | None = None
    ending: str = ""

    def written(self, before: Sequence[Exchange], typed: str) -> Text:
        """The prompt as training would have written it.

        >>> PromptForm(chat=False, template="Q: {prompt}", ending="\\n").written([], "1 + 1?")
        'Q: 1 + 1?\\n'
        >>> PromptForm(chat=True).written([Exchange("Hi", "Yes?")], "Who?")[1:]
        [{'role': 'assistant', 'content': 'Yes?'}, {'role': 'user', 'content': 'Who?'}]
        """
        if not self.chat:
            text = self._filled(typed)
            return text if text.endswith(self.ending) else text + self.ending
        messages: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for exchange in before:
            messages.append({"role": "user", "content": self._filled(exchange.prompt)})
            messages.append({"role": "assistant", "content": exchange.answer})
        return [*messages, {"role": "user", "content": self._filled(typed)}]

    def lines(self) -> list[str]:
        """What a person should know about it."""
        if self.chat:
            said = ["your text is a message in the chat template; the conversation so far stands in front of it"]
        else:
            said = ["the model continues your text, as in training; each text stands alone, nothing is remembered"]
        if self.template != "{prompt}":
            said.append(f"your text is put into the run's template: {self.template!r}")
        if self.ending:
            said.append(f"all prompts of this run end with {self.ending!r}; it is added to yours")
        return said

    def _filled(self, typed: str) -> str:
        return self.template.replace("{prompt}", typed)


def bears_chat_template(encoder: TextEncoder, prompts: Sequence[str]) -> bool:
    """Whether prompts, decoded without special tokens, were written by the tokenizer's chat template.

    A template leaves words around a message, such as the name of a role. One that writes nothing but special tokens
    leaves no trace: then, and without prompts to look at, a template that is there counts as used.
    """
    if not encoder.has_chat_template:
        return False
    [ids] = encoder.encode_prompts(["chat template"], [[{"role": "user", "content": _PROBE}]])
    before, _, behind = encoder.decode(ids or ()).rpartition(_PROBE)
    opening = before.strip().rpartition("\n")[2]  # the line before the message: a default system message is above it
    return all(prompt.rstrip().endswith(behind.strip()) and opening in prompt for prompt in prompts)


def common_ending(prompts: Sequence[str]) -> str:
    """The white space that all prompts end with.

    >>> common_ending(["Why? \\n", "Who?\\n"]), common_ending(["Why?", "Who?\\n"]), common_ending([])
    ('\\n', '', '')
    """
    tails = [prompt[len(prompt.rstrip()) :][::-1] for prompt in prompts]
    return os.path.commonprefix(tails)[::-1]
