"""Alarms come when a run goes wrong, once, and not when it goes well."""

from collections.abc import Mapping, Sequence

import pytest

from groupwise.observe.alarms import Alarm, Alarms, Watched
from groupwise.sections import AlarmsSection

GRPO = Watched(spikes=("grad_norm",), held_out="eval/pass@1", trained="reward")
DPO = Watched(spikes=("loss",), held_out="eval/rewards/accuracies", trained="rewards/accuracies", beta=0.1)
Row = Mapping[str, float]


def raised(rows: Sequence[Row], watched: Watched = GRPO) -> list[Alarm]:
    alarms = Alarms(AlarmsSection(), watched)
    for step, row in enumerate(rows, start=1):
        alarms.look({"step": step, **row})
    return alarms.raised


def ramp(name: str, first: float, last: float, count: int = 40, **others: float) -> list[Row]:
    return [{name: first + (last - first) * i / (count - 1), **others} for i in range(count)]


def looked_at(name: str, value: float, **others: float) -> Row:
    return {name: value, f"{name}/low": value - 0.05, f"{name}/high": value + 0.05, **others}


@pytest.mark.parametrize(
    ("name", "rows", "watched", "words"),
    [
        ("spike/grad_norm", [{"grad_norm": 1 + 0.1 * (i % 3)} for i in range(30)] + [{"grad_norm": 9.0}], GRPO,
         ("grad_norm is 9", "median of 1.1", "optimizer.learning_rate")),
        ("spike/loss", [{"loss": 0.5 + 0.01 * (i % 2)} for i in range(30)] + [{"loss": 40.0}], DPO, ("loss is 40",)),
        ("entropy", ramp("entropy", 2.0, 0.1) + [{"entropy": 0.01}] * 5, GRPO, ("fell from 1.", "loss.kl_coefficient")),
        ("kl", ramp("kl", 0.0, 2.0), GRPO, ("nats per token (limit 0.5)", "loss.kl_coefficient")),
        ("length", ramp("completions/clipped_ratio", 0.0, 0.9), GRPO, ("cut at the length limit", "max_new_tokens")),
        ("chosen_falls", [{"rewards/chosen": -0.1 * i, "logps/chosen": -30.0 - i} for i in range(40)], DPO,
         ("lost 10 nats", "of 32", "loss.beta")),
        ("no_signal", [{"frac_reward_zero_std": 1.0, "reward": 0.0}] * 6, GRPO, ("100% of groups", "easier prompts")),
        ("saturated", ramp("reward", 0.2, 1.0, 10, frac_reward_zero_std=0.0)
         + [{"reward": 1.0, "frac_reward_zero_std": 1.0}] * 6, GRPO, ("at a mean of 1", "stop here")),
        ("sampler_gap", ramp("sampler/gap", 0.01, 0.01, 10) + ramp("sampler/gap", 0.05, 0.4, 20), GRPO,
         ("servers and engine differ", "at the start", "--dtype")),
        ("held_out_falls", [looked_at("eval/pass@1", 0.8, reward=0.5), {"reward": 0.7},
                            looked_at("eval/pass@1", 0.4, reward=0.9)], GRPO,
         ("from 0.8 (step 1) to 0.4", "checkpoint of step 1")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_alarm_says_what_and_what_to_do(
    name: str, rows: Sequence[Row], watched: Watched, words: Sequence[str]
) -> None:
    found = raised(rows, watched)
    assert [alarm.name for alarm in found] == [name]
    for word in words:
        assert word in found[0].text


@pytest.mark.parametrize(
    "rows",
    [
        [{"grad_norm": 1 + 0.5 * (i % 7), "loss": 0.1} for i in range(100)],
        ramp("entropy", 0.18, 0.015),  # a solved task: the healthy default ends there
        ramp("kl", 0.0, 0.2),
        ramp("reward", 0.3, 0.97, frac_reward_zero_std=0.8),
        [{"completions/clipped_ratio": 0.5}] * 40,  # cut from the start: the limit is short, nothing drifts
        [looked_at("eval/pass@1", v, reward=v) for v in (0.8, 0.78, 0.82, 0.74)],  # within the intervals
        [looked_at("eval/pass@1", v, reward=v) for v in (0.8, 0.4)],  # both fall: not the reward's doing
        [{"loss": 0.7}],
        [{"grad_norm": 1.0, "groups/used": 16}] * 30 + [{"grad_norm": 9.0, "groups/used": 1}],
    ],
)
def test_a_healthy_run_raises_none(rows: Sequence[Row]) -> None:
    assert raised(rows) == []


def test_the_same_alarm_is_quiet_for_a_while() -> None:
    rows: list[Row] = [{"kl": 2.0}] * 120
    assert [alarm.step for alarm in raised(rows)] == [5, 56, 107]


def test_a_row_without_the_metric_raises_nothing() -> None:
    """Steps on a used rollout have no reward; the alarm belongs to the step that gathered it."""
    rows: list[Row] = [{"frac_reward_zero_std": 1.0, "reward": 0.0}, {}] * 5
    assert [alarm.step for alarm in raised(rows)] == [9]
