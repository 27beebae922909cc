"""What differs between two configurations."""

from groupwise.config import differences
from tests.config.example import Config, DataSection, LossSection, ModelSection


def test_differences_name_key_and_both_values():
    a = Config(model=ModelSection(path="m"))
    b = Config(
        model=ModelSection(path="n"), loss=LossSection(beta=0.5), lora=None, data=DataSection(weights={"math": 2.0})
    )
    assert differences(a, b) == [
        "model.path: m -> n",
        "loss.beta: 0.1 -> 0.5",
        "data.weights: {math: 1.0} -> {math: 2.0}",
        "lora: {rank: 16, targets: all-linear} -> null",
    ]
    assert differences(a, Config(model=ModelSection(path="m"))) == []
