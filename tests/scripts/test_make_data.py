"""The embedded data and model: same bytes again, nothing held out leaks, every sum is true, digits stay single."""

import importlib.util
import json
import operator
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("raw/reviews.jsonl", "raw/reviews_heldout.jsonl", "prompts.json")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up, and one script imports the other
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    return load("make_data")


@pytest.fixture(scope="module")
def train_base_model(make_data: ModuleType) -> ModuleType:
    assert make_data.__name__ == "make_data"
    return load("train_base_model")


def rows(name: str) -> list[dict[str, str]]:
    text = (ROOT / "data" / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def test_regenerating_gives_the_shipped_bytes(make_data: ModuleType, tmp_path: Path) -> None:
    make_data.write(tmp_path, seed=make_data.SEED, train_pairs=6000, train_problems=2000, heldout=256)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes(), name


def test_held_out_prompts_are_disjoint_and_none_repeats() -> None:
    train, heldout = rows(FILES[0]), rows(FILES[1])
    problems = rows("prompts.json")
    assert (len(train), len(heldout)) == (6000, 256)
    assert [sum(row["split"] == split for row in problems) for split in ("train", "heldout")] == [2000, 256]
    for prompts in ([row["prompt"] for row in (*train, *heldout)], [row["prompt"] for row in problems]):
        assert len(set(prompts)) == len(prompts)


def test_review_prompts_are_short_openings_and_completions_begin_with_a_space() -> None:
    for row in (*rows(FILES[0]), *rows(FILES[1])):
        assert 5 <= len(row["prompt"].split()) <= 15
        assert row["prompt"] == row["prompt"].strip()
        for side in ("chosen", "rejected"):
            assert re.fullmatch(r" \S.*\S\.", row[side]) and "  " not in row[side]


def test_length_does_not_tell_chosen_from_rejected(make_data: ModuleType) -> None:
    # With 6,000 pairs the standard error of this AUC is about 0.005: chance leaves the interval hardly ever.
    pairs = [make_data.ReviewPair(**row) for row in rows(FILES[0])]
    assert abs(make_data.longer_wins_auc(pairs) - 0.5) < 0.04
    always_longer = [make_data.ReviewPair("p", " " + "x" * (i + 50), " " + "x" * i) for i in range(20)]
    assert make_data.longer_wins_auc(always_longer) == 1.0


def test_counting_keywords_does_not_solve_the_reviews(make_data: ModuleType) -> None:
    lexicon = make_data.lexicon.LEXICON
    right = 0.0
    pairs = rows(FILES[0])
    for row in pairs:
        for sign, side in ((1, "chosen"), (-1, "rejected")):
            count = sign * sum(lexicon.get(word, 0) for word in re.findall(r"[a-z]+", row[side].lower()))
            right += (count > 0) + (count == 0) / 2
    # A quarter of the texts needs more than words; half of them would be beyond a model of two million parameters.
    assert 0.7 < right / (2 * len(pairs)) < 0.8


def check_solution(solution: str, answer: str) -> int:
    """Check a worked solution line by line and return its number of equations."""
    *lines, last = solution.split("\n")
    results: list[int] = []
    for line in lines:
        left, op, right, equals, result = line.split(" ")
        assert equals == "=" and OPERATIONS[op](int(left), int(right)) == int(result), line
        results.append(int(result))
    assert last == f"#### {answer}" and results[-1] == int(answer)
    return len(results)


def test_every_worked_solution_is_true_and_ends_in_the_answer(make_data: ModuleType) -> None:
    rng = random.Random(2)
    drawn: Iterable[tuple[str, str]] = ((p.solution, p.answer) for p in (make_data.problem(rng) for _ in range(2000)))
    steps = [check_solution(solution, answer) for solution, answer in drawn]
    steps += [check_solution(row["solution"], row["answer"]) for row in rows("prompts.json")]
    assert set(steps) == {1, 2, 3, 4}
    assert sum(count >= 2 for count in steps) / len(steps) > 0.9


def test_every_number_of_a_solution_comes_from_the_problem_or_an_earlier_line() -> None:
    # A solution that used a number from nowhere would teach guessing, and no checker of equations alone would see it.
    for row in rows("prompts.json"):
        known = set(re.findall(r"\d+", row["prompt"]))
        assert row["prompt"].endswith("?\n")
        for line in row["solution"].split("\n")[:-1]:
            left, _, right, _, result = line.split(" ")
            assert {left, right} <= known, row
            known.add(result)


def test_every_number_of_a_problem_is_needed() -> None:
    for row in rows("prompts.json"):
        used = set(re.findall(r"\d+", row["solution"]))
        assert set(re.findall(r"\d+", row["prompt"])) <= used, row


def test_the_trainer_never_draws_a_held_out_prompt(train_base_model: ModuleType) -> None:
    # Hold out everything that a first run would draw: a second run must then draw other prompts.
    rng = random.Random(4)
    first = [train_base_model.problem_document(rng, 0.5).prompt for _ in range(50)]
    rng = random.Random(4)
    again = [
        train_base_model.unseen(lambda r: train_base_model.problem_document(r, 0.5), rng, frozenset(first)).prompt
        for _ in range(50)
    ]
    assert not set(first) & set(again)


def test_worked_share_of_the_corpus_follows_the_schedule(train_base_model: ModuleType) -> None:
    recipe = train_base_model.Recipe()
    rng = random.Random(6)
    for progress in (0.0, 1.0):
        share = train_base_model.worked_share_at(recipe, progress)
        worked = sum("=" in train_base_model.problem_document(rng, share).completion for _ in range(2000))
        assert abs(worked / 2000 - share) < 0.05  # five standard errors


def test_drills_are_true_sums_and_leave_the_corpus_before_its_end(train_base_model: ModuleType) -> None:
    rng = random.Random(8)
    recipe = train_base_model.Recipe()
    for line in train_base_model.drill_document(rng, equations=200).completion.split("\n"):
        left, op, right, _, result = line.split(" ")
        assert OPERATIONS[op](int(left), int(right)) == int(result)
    prompts = {
        p: [train_base_model.corpus_document(rng, recipe, p).prompt for _ in range(300)] for p in (0.0, 0.6, 1.0)
    }
    assert "Sums:\n" in prompts[0.0]
    assert "Sums:\n" not in prompts[0.6] + prompts[1.0]


def test_a_text_batch_weighs_completions_fully_and_padding_not_at_all(train_base_model: ModuleType) -> None:
    batch = train_base_model.text_batch([([5, 6, 7], [8]), ([5], [6, 0])], 0.1)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 6, 0, 0]]
    assert batch.weights.tolist() == [pytest.approx([0.1, 0.1, 0.1, 1.0]), pytest.approx([0.1, 1.0, 1.0, 0.0])]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("#### 19<|endoftext|>", True),
        ("12 + 7 = 19\n#### 19<|endoftext|>", True),
        ("12 + 7 = 19<|endoftext|>", False),
        ("#### 190", False),
        ("#### 19\n#### 20", False),
        ("", False),
    ],
)
def test_what_counts_as_the_right_answer(train_base_model: ModuleType, completion: str, right: bool) -> None:
    problem = train_base_model.make_data.Problem("p\n", "19", "12 + 7 = 19\n#### 19")
    assert train_base_model.is_right(completion, problem) is right


def test_shipped_tokenizer_has_single_digits_and_does_not_merge_over_the_prompt_boundary() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "model" / "base_gpt2")
    assert tokenizer.tokenize("123 + 45") == ["1", "2", "3", "\u0120+", "\u0120", "4", "5"]
    assert not [token for token in tokenizer.get_vocab() if len(re.findall(r"\d", token)) > 1]
    assert tokenizer.eos_token == tokenizer.pad_token == tokenizer.bos_token == "<|endoftext|>"
    texts = [(row["prompt"], row[side]) for row in rows(FILES[1]) for side in ("chosen", "rejected")]
    texts += [(row["prompt"], row["solution"]) for row in rows("prompts.json")[-256:]]
    for prompt, completion in texts:
        parts = [tokenizer(text)["input_ids"] for text in (prompt, completion)]
        assert parts[0] + parts[1] == tokenizer(prompt + completion)["input_ids"]
        assert tokenizer.decode(parts[0] + parts[1]) == prompt + completion
        if completion.startswith(" "):
            assert 10 <= len(parts[1]) <= 45


def test_shipped_model_is_small_and_has_no_dropout() -> None:
    transformers = pytest.importorskip("transformers")
    folder = ROOT / "model" / "base_gpt2"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert 2_000_000 <= model.num_parameters() <= 8_000_000
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16 * 2**20
    config = model.config
    assert config.activation_function == "gelu_pytorch_tanh"
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)
    generation = model.generation_config
    assert not any([generation.top_k, generation.top_p not in (None, 1.0), generation.temperature not in (None, 1.0)])
