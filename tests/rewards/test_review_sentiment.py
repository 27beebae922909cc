"""The ground truth of the review task: what the rules say on hand-made texts, and that cheating does not pay."""

import importlib.util
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from groupwise.rewards.review_sentiment import CONCEDED_WEIGHT, LEXICON, review_sentiment


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_data.py"
    spec = importlib.util.spec_from_file_location("make_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("The acting is superb.", 1),
        ("The acting is dull.", -1),
        ("The acting isn't dull.", 1),
        ("The acting wasn\u2019t gripping.", -1),
        ("The songs are anything but dull", 1),
        ("It is far from a masterpiece.", -1),
        ("The script fails to be funny.", -1),
        ("It lacks charm.", -1),
        ("The story is free of cliches.", 1),
        ("It is not only dull but also slow.", -1),
        ("It is without doubt a gem.", 1),
        ("The plot is neither dull nor slow.", 1),
        ("It is neither funny nor warm.", -1),
        ("I would never recommend it.", -1),
        ("I could not hate it.", 1),
        # what a comma, a new sentence or a new subject ends, a denial does not reach
        ("It was not a bore, the cast was superb.", 1),
        ("Not a chore. Superb.", 1),
        ("The plot is not dull and the cast is superb.", 1),
        # contrast: the asserted side wins, wherever it stands
        ("The plot is weak, but the acting saves it.", 1),
        ("The acting is superb, but the plot ruins it.", -1),
        ("Although the plot is weak, the acting is superb.", 1),
        ("The acting is superb, although the plot is weak.", 1),
        ("The acting is superb even though the plot is weak and the music is dull.", 1),
        ("Despite the superb acting, the film is a mess.", -1),
        ("The music is stale, yet the film moved me and the cast is warm.", 1),
        ("The plot is weak. Still, the acting is superb.", 1),
        ("The cast is warm. However, the plot is muddled.", -1),
    ],
)
def test_sign_of_a_sentence(text: str, sign: int) -> None:
    assert review_sentiment(text) * sign > 0


@pytest.mark.parametrize(
    "text", ["", " \n ", "!!! ... ,,,", "We saw it on a Friday.", "not never but although", "42 + 7 = 49"]
)
def test_no_opinion_scores_zero(text: str) -> None:
    assert review_sentiment(text) == 0.0


@pytest.mark.parametrize("opinions", [1, 2, 3, 7])
def test_the_score_is_the_formula_of_its_docstring(opinions: int) -> None:
    words = ("superb", "witty", "warm", "vivid", "bold", "funny", "rich")[:opinions]
    text = " ".join(f"The cast is {word}." for word in words)
    assert review_sentiment(text) == pytest.approx(opinions / (opinions + 1))
    assert review_sentiment(text + " The plot is dull.") == pytest.approx((opinions - 1) / (opinions + 2))


def test_repeating_a_keyword_pays_nothing() -> None:
    # A policy that had found the word "superb" would otherwise fill its completion with it.
    once = review_sentiment("The acting is superb.")
    for text in (
        "superb " * 30,
        "The acting is superb. " * 8,
        "superb, superb, superb!",
        "superb but superb but superb",
    ):
        assert 0 < review_sentiment(text) <= once


def test_a_heap_of_keywords_is_one_clause() -> None:
    assert review_sentiment("superb witty warm vivid bold") == review_sentiment("The acting is superb.")
    assert review_sentiment("superb dull") == 0.0


@pytest.mark.parametrize("word", ["superb", "dull"])
def test_each_further_denial_flips_the_sign(word: str) -> None:
    plain = review_sentiment(f"It is {word}.")
    for count in range(1, 6):
        denied = "It is " + "not " * count + f"{word}."
        assert review_sentiment(denied) == (-1) ** count * plain


def test_denial_of_a_denial_in_words() -> None:
    assert review_sentiment("The acting is never without charm.") > 0
    assert review_sentiment("I cannot say that it is not dull.") < 0


def test_concession_weighs_a_third_in_either_order() -> None:
    expected = (1 - CONCEDED_WEIGHT) / (1 + CONCEDED_WEIGHT + 1)
    assert review_sentiment("It is dull, but it is warm.") == pytest.approx(expected)
    assert review_sentiment("Although it is dull, it is warm.") == pytest.approx(expected)
    assert review_sentiment("It is warm, although it is dull.") == pytest.approx(expected)


def test_conceding_an_opinion_first_does_not_cheapen_asserting_it() -> None:
    # Counting a repeated opinion at its first, conceded mention would turn this text negative.
    text = "Although the cast is warm, the plot is dull. The music is warm. The songs are warm. The ending is vivid."
    assert review_sentiment(text) > 0


def test_exchanging_every_opinion_flips_the_score(make_data: ModuleType) -> None:
    # Truth has no favourite side: with praise and blame exchanged word for word, the score is the exact opposite.
    praise, blame = (sorted(word for word in LEXICON if LEXICON[word] == sign) for sign in (1, -1))
    pairs = list(zip(praise, blame, strict=False))
    swap = dict(pairs) | {bad: good for good, bad in pairs}
    rng = random.Random(5)
    tried = 0
    for _ in range(300):
        text = make_data.review_pair(rng).chosen.lower()
        if {word for word in re.findall(r"[a-z]+", text) if word in LEXICON} <= swap.keys():
            exchanged = re.sub(r"[a-z]+", lambda match: swap.get(match[0], match[0]), text)
            assert review_sentiment(exchanged) == pytest.approx(-review_sentiment(text)), text
            tried += 1
    assert tried > 200


def test_agrees_with_the_intended_label_of_the_grammar(make_data: ModuleType) -> None:
    rng = random.Random(11)
    for _ in range(2000):
        pair = make_data.review_pair(rng)
        assert review_sentiment(pair.prompt) == 0.0
        for sign, text in ((1, pair.chosen), (-1, pair.rejected)):
            assert review_sentiment(text) * sign > 0, text
            assert review_sentiment(pair.prompt + text) == pytest.approx(review_sentiment(text)), pair.prompt + text


def test_score_stays_inside_its_range() -> None:
    rng = random.Random(3)
    words = [*LEXICON, "not", "but", "although", ",", ".", "and", "the", "nor", "Still"]
    for _ in range(500):
        assert -1 < review_sentiment(" ".join(rng.choices(words, k=rng.randint(0, 60)))) < 1
