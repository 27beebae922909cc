"""The four choices of every preset, and combinations that make no sense: each refused by name, with a remedy."""

import pytest
from pydantic import ValidationError

from grpo.config import GrpoConfig, GrpoLossSection
from grpo.presets import PRESETS


def loss(**options: object) -> GrpoLossSection:
    return GrpoLossSection.model_validate(options)


def config(loss: dict[str, object], **sections: object) -> GrpoConfig:
    needed = {"data": {"train": ("x",)}, "rewards": ({"name": "length"},), "run": {"name": "x"}}
    return GrpoConfig.model_validate({**needed, "loss": loss, **sections})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_holds_together_and_so_does_its_spelled_out_form(preset: str) -> None:
    chosen = loss(preset=preset)
    assert {key: getattr(chosen, key) for key in PRESETS[preset]} == PRESETS[preset]
    assert GrpoLossSection.model_validate(chosen.model_dump()) == chosen


def test_a_preset_may_be_left_by_one_key() -> None:
    """What the preset set for the surrogate that it had is not the user's mistake."""
    assert loss(preset="gspo", surrogate="sapo", ratio="token").surrogate == "sapo"
    assert loss(preset="cispo", surrogate="clip").clip_high == 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio_cap": 3.0}, ("ratio_cap", "cispo")),
        ({"preset": "cispo", "clip_high": 5.0}, ("clip_high", "clip, gmpo and dppo")),
        ({"preset": "sapo", "ratio": "completion"}, ("ratio", "surrogate clip")),
        ({"preset": "dapo", "kl_form": "k2"}, ("kl_form", "kl_coefficient")),
        ({"preset": "dr_grpo", "std_ddof": 1}, ("std_ddof", "advantage_scale")),
        ({"constant_length": 100}, ("constant_length", "normaliser constant")),
        ({"entropy_step": 0.1}, ("entropy_step", "entropy_target")),
        ({"kl_form": "exact", "kl_ratio": True}, ("kl_ratio", "estimate")),
        ({"reference_mix": 0.5}, ("reference_mix", "average")),
        ({"kl_form": "k1"}, ("k1", "mean is 0", "kl_ratio")),
        ({"kl_form": "exact", "kl_place": "reward"}, ("exact", "k1")),
        ({"kl_form": "k1", "kl_place": "reward_per_token"}, ("reward_per_token", "batch_mean")),
        ({"advantage_baseline": "none"}, ("advantage_baseline", "advantage_scale")),
        ({"advantage_baseline": "batch_mean"}, ("group_std", "batch_std")),
        ({"several_rewards": "normalise_each", "advantage_baseline": "leave_one_out"}, ("GDPO", "group_mean")),
        ({"entropy_target": 0.2, "entropy_coefficient": 2.0}, ("entropy_most",)),
        ({"ratio_bound": 0.5}, ("ratio_bound",)),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        loss(**options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("options", "sections", "words"),
    [
        ({"preset": "sft"}, {}, ("answer_column",)),
        ({"preset": "sft"}, {"rollout": {"answer_column": "a"}}, ("completions_per_prompt", "1")),
        ({}, {"rollout": {"answer_column": "a"}}, ("answer_column", "data")),
        ({}, {"rollout": {"completions_per_prompt": 1}}, ("completions_per_prompt", "group_mean")),
        (
            {},
            {"rollout": {"source": "data", "answer_column": "a", "completions_per_prompt": 1}},
            ("log_prob", "sft"),
        ),
        ({"sampler_cap": 2.0}, {}, ("sampler_cap", "top_p")),
    ],
)
def test_sources_and_samplers_that_do_not_fit_are_refused(
    options: dict[str, object], sections: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        config(options, **sections)
    assert all(word in str(caught.value) for word in words)


def test_presets_of_the_unified_paradigm_say_where_answers_come_from() -> None:
    given = {"rollout": {"answer_column": "solution", "completions_per_prompt": 1}}
    assert config({"preset": "sft"}, **given).source == "data"
    assert config({"preset": "rft"}).source == "base"
    assert config({"preset": "online_rft"}).source == config({}).source == "policy"
    assert config({"preset": "rft"}, rollout={"source": "policy"}).source == "policy"
    assert config({"preset": "reinforce_pp"}, rollout={"completions_per_prompt": 1}).source == "policy"
