"""What a person types is obeyed, what a model writes cannot touch the terminal, and no file is overwritten."""

import io
import json
from pathlib import Path

from rich.console import Console

from groupwise.deploy.speaker import Dice
from groupwise.deploy.terminal import Conversation
from tests.deploy.parrot import Parrot, as_speaker

HOSTILE = "[red]a[/red]\x1b[2Jb\x07\u202ec\r\nd :smile: é"
HARMLESS = "[red]a[/red] [2Jb  c \nd :smile: é"


def talk(*lines: str, words: str = "hm", terminal: bool = False) -> tuple[Conversation, Parrot, str, str]:
    """The conversation after these lines, who was asked what, the answers, and the notes."""
    answers, notes = io.StringIO(), io.StringIO()
    parrot = Parrot(words)
    conversation = Conversation(
        as_speaker(parrot),
        Dice(0.7, 0),
        answers=Console(file=answers, width=20, force_terminal=terminal),
        notes=Console(file=notes, width=500),
    )
    conversation.hear(lines)
    return conversation, parrot, answers.getvalue(), notes.getvalue()


def test_commands_change_who_is_asked_and_how() -> None:
    conversation, parrot, answers, notes = talk(
        "one\n", "/base", "two", "/temp 0.2", "/seed 7", "/both", "three", "/new", "/tuned", "four", "/quit", "five"
    )
    first, second = Dice(0.7, 0), Dice(0.2, 7)
    assert parrot.heard == [
        ("tuned", 0, "one", first),
        ("base", 1, "two", first),
        ("base", 2, "three", second),
        ("tuned", 2, "three", second),
        ("tuned", 0, "four", second),
    ]
    assert answers == "hm\nhm\n--- base ---\nhm\n--- tuned ---\nhm\nhm\n"
    assert "[cut: too tired]" in notes
    assert [turn.prompt for turn in conversation.turns] == ["four"]
    assert conversation.refused == 0


def test_control_characters_and_markup_of_a_model_stay_text() -> None:
    for terminal in (False, True):
        _, _, answers, _ = talk("hi", words=HOSTILE, terminal=terminal)
        assert answers == HARMLESS + "\n"


def test_mistakes_are_lines_that_say_what_to_do() -> None:
    conversation, parrot, _, notes = talk(
        "/bsae", "/tmep 1", "/xyzzy", "/temp", "/temp hot", "/temp -1", "/temp nan", "/seed -1", "/seed 1.5", "/seed ²",
        "/save", "/save x.jsonl", "/both of you", "x" * 21,
    )  # fmt: skip
    assert parrot.heard == [] and conversation.refused == 14
    for said in (
        "/bsae is no command; did you mean /base?",
        "did you mean /temp?",
        "/xyzzy is no command; /help lists them",
        "/temp takes a number",
        "temperature -1: must be from 0",
        "temperature nan: must be from 0",
        "/seed takes a whole number",
        "nothing has been said yet",
        "/both takes nothing behind it",
        "your text is too long",
    ):
        assert said in notes


def test_a_saved_conversation_reads_back_and_nothing_is_overwritten(tmp_path: Path) -> None:
    lines, text = tmp_path / "talk.jsonl", tmp_path / "talk.txt"
    _, _, _, notes = talk(
        "/both", "hi", f"/save {lines}", f"/save {text}", "/tuned", "again", f"/save {lines}",
        f"/save {tmp_path / 'nowhere' / 'x'}", words=HOSTILE,
    )  # fmt: skip
    [turn] = [json.loads(line) for line in lines.read_text().splitlines()]
    assert turn["prompt"] == "hi" and turn["temperature"] == 0.7 and turn["seed"] == 0
    assert turn["tuned"] == {"text": HOSTILE, "tokens": len(HOSTILE), "finished": True}
    assert turn["base"]["finished"] is False
    assert f"tuned (temperature 0.7, seed 0): {HARMLESS}" in text.read_text()
    assert "exists and is left as it is" in notes and "cannot be written" in notes


def test_help_names_every_command() -> None:
    _, _, _, notes = talk("/help")
    for name in ("/tuned", "/base", "/both", "/temp", "/seed", "/save", "/new", "/help", "/quit"):
        assert f"\n{name}" in f"\n{notes}"


def test_ctrl_c_ends_the_answer_and_not_the_conversation() -> None:
    class Interrupted(Parrot):
        def answer(self, *arguments: object):  # type: ignore[no-untyped-def]
            if not self.heard:
                self.heard.append(("tuned", 0, "", Dice(0, 0)))
                yield "h"
                raise KeyboardInterrupt
            return (yield from super().answer(*arguments))  # type: ignore[arg-type]

    answers, notes = io.StringIO(), io.StringIO()
    conversation = Conversation(
        as_speaker(Interrupted("hm")), Dice(0, 0), answers=Console(file=answers), notes=Console(file=notes)
    )
    conversation.hear(["one", "two"])
    assert answers.getvalue() == "hhm\n"
    assert [turn.prompt for turn in conversation.turns] == ["two"]
