"""The sentence that a run ends with: what decides, and what it is not fooled by."""

from collections.abc import Sequence

import pytest

from groupwise.observe.samples import Answers, LengthBias, PromptSamples, Sample, length_bias, paired_change
from groupwise.observe.statistics import Figure, mean_interval, paired_difference
from groupwise.observe.verdict import Change, Evidence, verdict


def change(before: Sequence[float], after: Sequence[float], label: str = "right answers") -> Change:
    return Change(label, mean_interval(before), mean_interval(after), paired_difference(before, after))


def evidence(
    decides: Change,
    *,
    trained: Change | None = None,
    tokens: tuple[float, float] = (20.0, 20.0),
    bias: LengthBias | None = None,
    alarms: Sequence[str] = (),
) -> Evidence:
    return Evidence(decides, [], trained, tokens, 1.5, bias, alarms)


HALF = [0.0, 1.0] * 20


@pytest.mark.parametrize(
    ("after", "kind", "words"),
    [
        ([1.0] * 40, "gain", "It worked: right answers rose from 50 % to 100 % (+50 points"),
        (HALF, "no gain", "No significant gain: right answers went from 50 % to 50 % (+0 points, 95 % interval 0"),
        ([1.0, *HALF[1:]], "no gain", "No significant gain"),
        ([0.0] * 40, "loss", "It made things worse: right answers fell from 50 % to 0 % (-50 points"),
    ],
)
def test_the_interval_of_the_difference_decides(after: list[float], kind: str, words: str) -> None:
    found = verdict(evidence(change(HALF, after)))
    assert found.kind == kind and found.text.startswith(words)
    assert found.text.endswith("answers kept their length; KL 1.5 nats; no alarms.")


def test_a_reward_that_rises_alone_is_gamed() -> None:
    reward = change([1.0, 2.0] * 20, [9.0] * 40, "their reward")
    found = verdict(evidence(change(HALF, HALF), trained=reward))
    assert found.kind == "gamed" and "but right answers did not rise" in found.text
    assert verdict(evidence(change(HALF, [1.0] * 40), trained=reward)).kind == "gain"


def test_the_last_bit_of_a_score_is_no_rise() -> None:
    """Three answers scored alike but for float32's last bit were once called a reward that is gamed."""
    before = [1.1500001, 1.15, 1.1500001]
    reward = change(before, [score + 6e-8 for score in before], "their reward")
    assert reward.kind == "no gain"
    assert verdict(evidence(change(HALF, HALF), trained=reward)).kind == "no gain"


@pytest.mark.parametrize(
    ("share", "pairs", "tokens", "kind"),
    [
        (1.0, 500, (20.0, 60.0), "gamed"),
        (0.0, 500, (60.0, 20.0), "gamed"),
        (0.9, 500, (20.0, 60.0), "gain"),  # a base that is right when it works at length
        (1.0, 20, (20.0, 60.0), "gain"),  # too few to tell
        (1.0, 500, (20.0, 22.0), "gain"),  # it did not get longer
        (1.0, 500, (60.0, 20.0), "gain"),  # nor the way that pays
    ],
)
def test_a_reward_that_pays_for_length_is_gamed(
    share: float, pairs: int, tokens: tuple[float, float], kind: str
) -> None:
    gain = change(HALF, [1.0] * 40)
    found = verdict(evidence(gain, trained=gain, tokens=tokens, bias=LengthBias(share, pairs)))
    assert found.kind == kind
    assert ("pays for length" in found.text) == (kind == "gamed")


def test_alarms_and_length_are_told() -> None:
    text = verdict(evidence(change(HALF, [1.0] * 40), tokens=(20.0, 30.0), alarms=["kl", "length", "kl"])).text
    assert "answers got 50 % longer" in text and text.endswith("3 alarms (kl, length).")


def test_a_change_is_paired_by_prompt() -> None:
    """Prompts differ by 8, every one gains 1: separate intervals overlap, the paired one is a point."""
    samples = [
        PromptSamples(f"x:{i}", "?", _answers([i * 2.0, i * 2.0]), _answers([i * 2.0, i * 2.0 + 2])) for i in range(5)
    ]
    assert paired_change(samples, lambda sample: sample.score) == Figure(1.0, 1.0, 1.0, 5)


def test_unjudged_prompts_are_in_no_change() -> None:
    samples = [
        PromptSamples("x:1", "?", _answers([1.0, 2.0]), _answers([None, 2.0])),
        PromptSamples("x:2", "?", _answers([1.0]), _answers([4.0])),
    ]
    assert paired_change(samples, lambda sample: sample.score) == Figure(3.0, 3.0, 3.0, 1)
    assert paired_change(samples[:1], lambda sample: sample.score) is None


def test_length_is_compared_inside_a_prompt_alone() -> None:
    """Over all prompts longer answers score less here; of one prompt the longer one always wins."""
    samples = [
        PromptSamples(
            f"x:{i}",
            "?",
            Answers([Sample("a", 10 * i, True, score=-float(i)), Sample("b", 10 * i + 1, True, score=0.5 - i)]),
            Answers([Sample("c", 3, True, score=1.0), Sample("d", 3, True, score=0.0)]),
        )
        for i in range(1, 5)
    ]
    assert length_bias(samples) == LengthBias((4 * 1.0 + 4 * 0.5) / 8, 8)


def _answers(scores: Sequence[float | None]) -> Answers:
    return Answers([Sample("x", 1, True, score=score) for score in scores])
