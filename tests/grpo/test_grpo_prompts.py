"""Prompts from rows: mapping, templates, chat, what is dropped, and every bad row at once."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from groupwise.data.text import TextEncoder
from groupwise.errors import UserError
from grpo.config import PromptDataSection
from grpo.dataset_utils import Prompt, PromptReport, hold_out, load_prompts


def load(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: Sequence[object], **options: object
) -> tuple[list[Prompt], PromptReport]:
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptDataSection.model_validate({"train": (str(file),), **options})
    encoder = TextEncoder(tokenizer, max_prompt_tokens=data.max_prompt_tokens, max_completion_tokens=8)
    return load_prompts(data.train, encoder, data, split=data.split)


def test_every_column_reaches_the_rewards_under_our_names_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"question": "2 + 3?", "meta": {"gold": "5"}, "split": "train"}]
    (prompt,), report = load(
        tmp_path, tokenizer, rows, columns={"prompt": "question", "answer": "meta.gold"}, split="train"
    )
    assert prompt.row["prompt"] == "2 + 3?" and prompt.row["answer"] == "5" and prompt.row["question"] == "2 + 3?"
    assert prompt.key.endswith("x.jsonl:1")
    assert tokenizer.decode(list(prompt.prompt_ids)) == "2 + 3?"
    assert report.columns == ("answer", "meta", "prompt", "question", "split")


def test_a_template_surrounds_what_the_model_sees_and_not_what_rewards_see(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (prompt,), _ = load(tmp_path, tokenizer, [{"prompt": "why {x}"}], template="Q: {prompt}\nA:")
    assert tokenizer.decode(list(prompt.prompt_ids)) == "Q: why {x}\nA:"
    assert prompt.row["prompt"] == "why {x}"


def test_chat_goes_through_the_template_of_the_tokenizer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    chatty = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    chatty.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (plain,), _ = load(tmp_path, chatty, [{"prompt": "why"}], chat=True, system="Be brief.")
    assert chatty.decode(list(plain.prompt_ids)) == "[system] Be brief.<|endoftext|>[user] why<|endoftext|>[assistant]"
    (messages,), _ = load(tmp_path, chatty, [{"prompt": [{"role": "user", "content": "why"}]}])
    assert chatty.decode(list(messages.prompt_ids)) == "[user] why<|endoftext|>[assistant]"


def test_what_is_too_long_is_dropped_and_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "ab"}, {"prompt": "a" * 400}, {"prompt": "ab"}]
    prompts, report = load(tmp_path, tokenizer, rows, max_prompt_tokens=16)
    assert [prompt.key.rpartition(":")[2] for prompt in prompts] == ["1", "3"]
    assert (report.rows_read, report.prompts_used, report.dropped_too_long, report.repeated) == (3, 2, 1, 1)
    with pytest.raises(UserError, match="max_prompt_tokens"):
        load(tmp_path, tokenizer, rows[1:2], max_prompt_tokens=16)


def test_all_bad_rows_are_told_at_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "ok"}, {"question": "x"}, {"prompt": " "}, {"prompt": 5}, {"prompt": []}]
    with pytest.raises(UserError) as caught:
        load(tmp_path, tokenizer, rows)
    lines = str(caught.value).splitlines()
    assert [line.partition("x.jsonl:")[2][0] for line in lines] == ["2", "3", "4", "5"]
    assert "data.columns" in lines[0] and "empty" in lines[1] and "int" in lines[2]


def test_a_single_prompt_cannot_be_held_out() -> None:
    prompts = [Prompt(key=str(i), prompt_ids=(1,), row={}) for i in range(5)]
    with pytest.raises(UserError, match="data.heldout"):
        hold_out(prompts, 3, seed=0)
