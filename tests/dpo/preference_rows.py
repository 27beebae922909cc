"""Rows of preference data, a tokenizer that can be counted by hand, and groups spelt out again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpo.dataset_report import DatasetReport
from dpo.dataset_utils import load_preference_groups
from groupwise.data.text import TextEncoder, TooLong
from groupwise.groups import Group

CHAT = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def made_tokenizer(texts: Sequence[str], *, size: int) -> Any:
    """Byte-level BPE with a chat template; size 258 is one token per byte, counted by hand."""
    inner: Any = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts,
        trainer(vocab_size=size, special_tokens=["<eos>", "<turn>"], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    tokenizer.chat_template = CHAT
    return tokenizer


TOKENIZER = made_tokenizer([], size=258)


def encoder(
    tokenizer: Any = TOKENIZER, *, prompt: int = 500, completion: int = 500, long: TooLong = "drop"
) -> TextEncoder:
    return TextEncoder(tokenizer, max_prompt_tokens=prompt, max_completion_tokens=completion, too_long=long)


def written(tmp_path: Path, rows: Sequence[object], name: str = "x.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(
    tmp_path: Path, rows: Sequence[object], by: TextEncoder | None = None, **options: Any
) -> tuple[list[Group], DatasetReport]:
    return load_preference_groups([written(tmp_path, rows)], by or encoder(), **options)


def spelt(group: Group) -> tuple[str, list[tuple[str, float]]]:
    return TOKENIZER.decode(list(group.prompt_ids)), [
        (TOKENIZER.decode(list(c.token_ids)), c.score) for c in group.completions
    ]


def pair(prompt: object = "p", chosen: object = " yes", rejected: object = " no", **extra: object) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra}


def ranked(scores: object, responses: object = (" a", " b", " c")) -> dict[str, object]:
    return {"prompt": "p", "responses": responses, "scores": scores}
