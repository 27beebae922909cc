"""Streamed answers are the sampler's, whoever speaks, in the form that training used; nothing is left switched."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dpo.config import DpoConfig
from groupwise.config import load_config
from groupwise.data.text import TextEncoder
from groupwise.deploy.prompt_form import PromptForm, bears_chat_template
from groupwise.deploy.speaker import Answer, Dice, Speaker, Turn, Voice
from groupwise.errors import UserError
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, ModelSection
from groupwise.train.run_folder import RunFolder
from scripts.chat import load_speaker
from tests.runs import unreadable_at

DICE = Dice(temperature=0.9, seed=0)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def speaker(finished_run: Path) -> Speaker:
    folder = RunFolder.finished(finished_run)
    return load_speaker(folder, load_config(DpoConfig, folder.config), "auto")


def speaker_on(model: Path, *, chat: bool = False) -> tuple[Speaker, LogprobEngine, TextEncoder]:
    policy = Policy.load(ModelSection(path=str(model)), LoraSection(rank=4), seed=0, device="cpu")
    encoder = TextEncoder(policy.tokenizer, max_prompt_tokens=sys.maxsize, max_completion_tokens=24)
    engine = LogprobEngine(policy)
    return Speaker(engine, encoder, PromptForm(chat=chat), SamplingParams(max_new_tokens=24)), engine, encoder


def said(speaker: Speaker, voice: Voice, typed: str, before: tuple[Turn, ...] = (), dice: Dice = DICE) -> Answer:
    """The whole answer; its pieces must be the same text."""
    pieces: list[str] = []
    stream = speaker.answer(voice, before, typed, dice)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            answer: Answer = end.value
            assert "".join(pieces) == answer.text
            return answer


def test_base_and_tuned_say_what_the_run_drew_at_its_end(speaker: Speaker, finished_run: Path) -> None:
    """Same seed, same prompt, same temperature: the first line of samples.jsonl, also where a character is cut."""
    row = json.loads((finished_run / "samples.jsonl").read_text().splitlines()[0])
    first = {part: row[part]["sampled"][0] for part in ("before", "after")}
    assert first["before"]["text"] != first["after"]["text"]
    assert said(speaker, "base", row["prompt"]).text == first["before"]["text"]
    tuned = said(speaker, "tuned", row["prompt"])
    assert (tuned.text, tuned.tokens, not tuned.cut) == tuple(
        first["after"][name] for name in ("text", "tokens", "finished")
    )


def test_another_seed_says_something_else_and_temperature_0_does_not_throw_dice(speaker: Speaker) -> None:
    drawn = {said(speaker, "base", "We saw", dice=Dice(0.9, seed)).text for seed in range(3)}
    assert len(drawn) == 3
    greedy = {said(speaker, "base", "We saw", dice=Dice(0, seed)).text for seed in range(3)}
    assert len(greedy) == 1


def test_an_answer_that_nobody_waits_for_leaves_the_policy_as_it_was(speaker: Speaker) -> None:
    whole = said(speaker, "tuned", "We saw it.").text
    abandoned = speaker.answer("base", [], "We saw it.", DICE)
    next(abandoned)
    assert said(speaker, "tuned", "We saw it.").text == whole


def test_text_that_fills_the_positions_is_answered_and_longer_text_is_refused(speaker: Speaker) -> None:
    """The tiny model has 128 positions; "a" is one token of its alphabet."""
    filling = said(speaker, "tuned", "a" * 127)
    assert filling.tokens == 1 and filling.cut == "the model has no more positions"
    with pytest.raises(UserError, match="128 tokens long .* 128 positions"):
        said(speaker, "tuned", "a" * 128)
    with pytest.raises(UserError, match="ends a text"):
        said(speaker, "tuned", "a<|endoftext|>b")
    with pytest.raises(UserError, match="surrogate"):
        said(speaker, "tuned", "a\udc80b")


def test_a_model_that_gives_nan_is_a_line(tiny_model: Path, tmp_path: Path) -> None:
    broken, _, _ = speaker_on(unreadable_at(3, tiny_model, tmp_path / "broken"))
    with pytest.raises(UserError, match="tuned model cannot read"):
        said(broken, "tuned", "We saw it.")


def test_a_chat_is_told_what_was_said_before(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "chatty")
    (tmp_path / "chatty" / "chat_template.jinja").write_text(TEMPLATE)
    speaker, engine, encoder = speaker_on(tmp_path / "chatty", chat=True)
    before = (Turn("Hi.", DICE, {"base": Answer("Yes.", 2), "tuned": Answer("No.", 2)}),)
    told = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Who?"},
    ]
    [ids] = encoder.encode_prompts(["x"], [told])
    assert ids is not None
    assert encoder.decode(ids) == "<|user|>Hi.\n<|assistant|>No.\n<|user|>Who?\n<|assistant|>"
    [[expected]] = sample_completions(
        engine, [ids], n=1, params=replace(speaker.params, temperature=0.9), end_ids=encoder.stop_ids, seed=0
    )
    assert said(speaker, "tuned", "Who?", before).text == encoder.decode(expected.token_ids)
    alone = (Turn("Hi.", DICE, {"tuned": Answer("No.", 2)}),)
    assert said(speaker, "base", "Who?", alone).text == said(speaker, "tuned", "Who?", before).text  # LoRA starts at 0


def test_the_form_of_prompts_is_read_off_the_held_out_ones(tiny_model: Path, tmp_path: Path) -> None:
    """A model with a chat template may have been trained on plain text all the same."""
    shutil.copytree(tiny_model, tmp_path / "chatty")
    (tmp_path / "chatty" / "chat_template.jinja").write_text(TEMPLATE)
    _, _, encoder = speaker_on(tmp_path / "chatty")
    assert bears_chat_template(encoder, ["<|user|>Hi.\n<|assistant|>", "<|user|>Who?\n<|assistant|>"])
    assert not bears_chat_template(encoder, ["We saw film 1.", "We saw film 2."])
    assert bears_chat_template(encoder, [])
    _, _, plain = speaker_on(tiny_model)
    assert not bears_chat_template(plain, [])


@pytest.mark.parametrize("values", [(-0.1, 0), (float("nan"), 0), (float("inf"), 0), (0.5, -1)])
def test_dice_that_cannot_be_thrown_are_refused(values: tuple[float, int]) -> None:
    with pytest.raises(UserError, match="must be"):
        Dice(*values)
