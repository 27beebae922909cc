"""A conversation on the terminal or through a pipe: commands, answers, a file to keep it in. Knows no model.

Answers go to standard output, everything else to standard error, so that a pipe receives answers alone.
"""

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from groupwise.deploy.speaker import VOICES, Answer, Dice, Speaker, Turn, Voice
from groupwise.errors import UserError, nearest, printable
from groupwise.train.run import say

Mode = Literal["base", "tuned", "both"]
HELP = {
    "/tuned": "the tuned model answers",
    "/base": "the base model answers, which training started from",
    "/both": "both answer, one after the other, with the same random numbers",
    "/temp X": "temperature; 0 takes the likeliest token",
    "/seed N": "seed of the random numbers; the same text with the same seed gets the same answer",
    "/save FILE": "write the conversation: objects for a name ending in .jsonl, otherwise readable text",
    "/new": "forget the conversation",
    "/help": "this list",
    "/quit": "leave, as do Ctrl-D and the end of a pipe",
}


class Conversation:
    """What was said, who answers, and with which dice."""

    def __init__(self, speaker: Speaker, dice: Dice, *, answers: Console, notes: Console) -> None:
        self.turns: list[Turn] = []
        self.mode: Mode = "tuned"
        self.dice = dice
        self.refused = 0
        self._speaker = speaker
        self._answers = answers
        self._notes = notes
        self._commands: dict[str, Callable[[str], None]] = {
            "/tuned": self._choose("tuned"),
            "/base": self._choose("base"),
            "/both": self._choose("both"),
            "/temp": self._set_temperature,
            "/seed": self._set_seed,
            "/save": self._save,
            "/new": self._forget,
            "/help": self._help,
        }

    def hear(self, lines: Iterable[str]) -> None:
        """Answer line after line, until one is /quit. `refused` counts the lines that could not be obeyed."""
        for line in lines:
            typed = line.strip("\r\n")
            if not typed.strip():
                continue
            if typed.split()[0] == "/quit":
                return
            try:
                if typed.lstrip().startswith("/"):
                    self._obey(typed.strip())
                else:
                    self._ask(typed)
            except UserError as error:
                self.refused += 1
                self._say(str(error))
            except KeyboardInterrupt:
                self._say("\nstopped; this turn is forgotten")

    # --- answers

    def _ask(self, typed: str) -> None:
        voices: tuple[Voice, ...] = VOICES if self.mode == "both" else (self.mode,)
        answers: dict[Voice, Answer] = {}
        for voice in voices:
            if self.mode == "both":
                self._write(f"--- {voice} ---\n")
            answers[voice] = self._spoken(voice, typed)
        self.turns.append(Turn(typed, self.dice, answers))

    def _spoken(self, voice: Voice, typed: str) -> Answer:
        """One answer, written out while it is drawn."""
        with contextlib.closing(self._speaker.answer(voice, self.turns, typed, self.dice)) as pieces:
            while True:
                try:
                    self._write(next(pieces))
                except StopIteration as end:
                    answer: Answer = end.value
                    break
        self._write("\n")
        if answer.cut:
            self._say(f"[cut: {answer.cut}]")
        return answer

    def _write(self, text: str) -> None:
        """A piece of an answer at once; what a model writes must not move the cursor."""
        self._answers.out(printable(text), end="", highlight=False)

    def _say(self, line: str) -> None:
        say(self._notes, line)

    # --- commands

    def _obey(self, typed: str) -> None:
        name, _, value = typed.partition(" ")
        command = self._commands.get(name)
        if command is None:
            meant = nearest(name, [*self._commands, "/quit"])
            raise UserError(f"{name} is no command; " + (f"did you mean {meant}?" if meant else "/help lists them"))
        command(value.strip())

    def _choose(self, mode: Mode) -> Callable[[str], None]:
        def chosen(value: str) -> None:
            _take_nothing(f"/{mode}", value)
            self.mode = mode
            self._say("both models answer" if mode == "both" else f"the {mode} model answers")

        return chosen

    def _set_temperature(self, value: str) -> None:
        try:
            temperature = float(value)
        except ValueError:
            raise UserError("/temp takes a number, such as /temp 0.7") from None
        self.dice = replace(self.dice, temperature=temperature)
        self._say(f"temperature {temperature:g}")

    def _set_seed(self, value: str) -> None:
        if not (value.isascii() and value.isdigit()):
            raise UserError("/seed takes a whole number from 0 on, such as /seed 1")
        self.dice = replace(self.dice, seed=int(value))
        self._say(f"seed {self.dice.seed}")

    def _save(self, value: str) -> None:
        if not value:
            raise UserError("/save takes a file, such as /save talk.jsonl")
        if not self.turns:
            raise UserError("nothing has been said yet, so there is nothing to save")
        file = Path(value).expanduser()
        text = as_jsonl(self.turns) if file.suffix == ".jsonl" else as_text(self.turns)
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            raise UserError(f"{file}: exists and is left as it is; choose another name") from None
        except OSError as error:
            raise UserError(f"{file}: cannot be written: {error.strerror}; choose another place") from None
        self._say(f"{len(self.turns)} turns saved to {file}")

    def _forget(self, value: str) -> None:
        _take_nothing("/new", value)
        self.turns.clear()
        self._say("a new conversation")

    def _help(self, value: str) -> None:
        _take_nothing("/help", value)
        self.introduce()

    def introduce(self) -> None:
        """What can be typed, and what becomes of it."""
        for usage, meaning in HELP.items():
            self._say(f"{usage:<12}{meaning}")
        for line in self._speaker.form.lines():
            self._say(line)
        if self._speaker.form.chat:
            self._say("a model that did not answer a turn itself is told what the other one answered")
        self._say(f"now: {self.mode}, temperature {self.dice.temperature:g}, seed {self.dice.seed}")


def as_jsonl(turns: Iterable[Turn]) -> str:
    """One object per turn."""
    return "".join(json.dumps(turn.as_dict(), ensure_ascii=False) + "\n" for turn in turns)


def as_text(turns: Iterable[Turn]) -> str:
    """The same to read, without control characters."""
    parts: list[str] = []
    for turn in turns:
        parts.append(f"you: {turn.prompt}\n")
        for voice, answer in turn.answers.items():
            cut = f" [cut: {answer.cut}]" if answer.cut else ""
            dice = f"temperature {turn.dice.temperature:g}, seed {turn.dice.seed}"
            parts.append(f"{voice} ({dice}): {answer.text}{cut}\n")
        parts.append("\n")
    return printable("".join(parts))


def _take_nothing(name: str, value: str) -> None:
    if value:
        raise UserError(f"{name} takes nothing behind it")
