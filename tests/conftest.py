"""Shared fixtures: a tiny random GPT-2 with its own tokenizer, and groups made of random ids."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from groupwise.groups import Completion, Group

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each worker and for what it starts: threads of several processes on one core wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no defect of the code
hypothesis.settings.load_profile("untimed")
# What starts pytest in the background may have switched Ctrl-C off.
signal.signal(signal.SIGINT, signal.default_int_handler)
TEXTS = [
    "The plot was dull and the music was loud.",
    "A warm and lovely film, I liked it a lot.",
    "We saw it on Friday. The acting is not bad at all.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end, pad_token=end)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer GPT-2 that speaks the tokenizer's vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def review_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Writes a JSONL file with that many preference pairs; the chosen ones praise."""

    def write(count: int) -> Path:
        file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
        rows = [
            {
                "prompt": f"We saw film number {i}.",
                "chosen": f" A lovely film, the {i % 7} actors are warm.",
                "rejected": f" A dull film, the {i % 5} actors are loud and tired.",
            }
            for i in range(count)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def random_groups(
    count: int, *, vocabulary: int, completions: int = 2, seed: int = 0, longest: int = 12
) -> list[Group]:
    """Groups of random ids whose prompts and completions differ in length; the scores fall with the index."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, vocabulary, (length,), generator=generator).tolist())

    return [
        Group(
            key=f"random:{index}",
            prompt_ids=ids(draw(2, longest)),
            completions=tuple(
                Completion(token_ids=(*ids(draw(0, longest)), 0), finished=True, score=float(completions - place))
                for place in range(completions)
            ),
        )
        for index in range(count)
    ]
