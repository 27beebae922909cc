"""A speaker that says what it is told to: for tests of what becomes of its words."""

from collections.abc import Generator, Sequence
from typing import cast

from groupwise.deploy.prompt_form import PromptForm
from groupwise.deploy.speaker import Answer, Dice, Speaker, Turn, Voice
from groupwise.errors import UserError


class Parrot:
    """Says its words in pieces of ten characters; refuses a text of more than 20."""

    def __init__(self, words: str) -> None:
        self.form = PromptForm(chat=True)
        self.words = words
        self.heard: list[tuple[Voice, int, str, Dice]] = []

    def answer(self, voice: Voice, before: Sequence[Turn], typed: str, dice: Dice) -> Generator[str, None, Answer]:
        if len(typed) > 20:
            raise UserError("your text is too long")
        self.heard.append((voice, len(before), typed, dice))
        yield from (self.words[start : start + 10] for start in range(0, len(self.words), 10))
        return Answer(self.words, len(self.words), cut="too tired" if voice == "base" else "")


def as_speaker(parrot: Parrot) -> Speaker:
    return cast(Speaker, parrot)
