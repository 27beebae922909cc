"""A written configuration is whole, commented, and reads back as it was."""

from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from groupwise.config import load_config, to_yaml
from tests.config.example import (
    Config,
    ConstantSchedule,
    CosineSchedule,
    DataSection,
    LoraSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    RewardSection,
)

texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["1e-6", "no", "null", "1_0", "~", "a\nb"])
numbers = st.floats(min_value=1e-30, max_value=1e30)
whole = st.integers(-(10**30), 10**30)  # a whole number of more digits is text to the reader, by its own rule
configs = st.builds(
    Config,
    model=st.builds(ModelSection, path=texts, dtype=st.sampled_from(["float32", "bfloat16"])),
    loss=st.builds(LossSection, beta=numbers),
    optimizer=st.builds(OptimizerSection, epochs=whole | st.just("endless"), learning_rate=numbers),
    data=st.builds(
        DataSection,
        train=st.lists(texts, max_size=3).map(tuple),
        shuffle=st.booleans(),
        weights=st.dictionaries(texts, numbers, max_size=2),
    ),
    lora=st.none() | st.builds(LoraSection, targets=st.lists(texts, max_size=2).map(tuple)),
    rewards=st.lists(st.builds(RewardSection, function=texts, gain=numbers), max_size=2).map(tuple),
    schedule=st.builds(CosineSchedule, floor=numbers) | st.builds(ConstantSchedule),
    note=st.none() | texts,
)


@settings(deadline=None)
@given(configs)
def test_written_configurations_load_back_equal(tmp_path_factory: Any, config: Config):
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Config, path) == config
    # Any other YAML 1.1 reader must see the same values.
    assert yaml.safe_load(to_yaml(config)) == config.model_dump(mode="json")


def test_every_default_is_written_and_every_key_commented():
    text = to_yaml(Config(model=ModelSection(path="m")))
    assert "  beta: 0.1         # 1/nat; pull to the reference: usually 0.1-0.5 # not a length\n" in text
    assert "  learning_rate: 1.0e-06  # step size [at its peak]\n" in text
    assert "lora:  # low-rank adapter; null trains every weight\n  rank: 16\n" in text
    assert "  # share of labels taken to be flipped, very long" in text  # too long to stand beside the value
    assert max(map(len, text.splitlines())) <= 120
