"""Mistakes of whoever writes a schema are refused where the class is made."""

from typing import Literal

import pytest

from groupwise.config import Section
from tests.config.example import LossSection


def test_a_default_that_a_file_would_silently_lose_is_refused():
    # `loss: {variant: hinge}` in a file would build LossSection from scratch, and beta would be 0.1 again.
    with pytest.raises(TypeError, match="put the defaults into LossSection itself"):
        type("Bad", (Section,), {"__annotations__": {"loss": LossSection}, "loss": LossSection(beta=0.5)})


def test_a_choice_among_numbers_is_refused():
    # Literal compares by equality, so `true` would pass for 1.
    with pytest.raises(TypeError, match="Literal choices must be text"):
        type("Bad", (Section,), {"__annotations__": {"ddof": Literal[0, 1]}, "ddof": 0})
