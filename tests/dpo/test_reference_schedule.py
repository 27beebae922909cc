"""A source whose reference moves: what a checkpoint may hold of it when a step could not be handed out."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from dpo import reference_schedule
from dpo.loss_config import DpoLossSection
from dpo.reference_schedule import MovingReference
from groupwise.errors import RunStopped
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection
from groupwise.train.runtime import Runtime
from groupwise.train.source import EpochSource
from tests.conftest import random_groups

MOVES_AT = 2


@pytest.mark.parametrize(("step", "known"), [(1, True), (MOVES_AT, False)])
def test_a_reference_that_moved_for_a_step_that_failed_is_in_no_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, known: bool
) -> None:
    """A run continued from there would move it a second time for the same step."""
    runtime = Runtime()
    policy = Policy.load(ModelSection(path=str(tiny_model)), LoraSection(rank=2), seed=0, device="cpu")
    source = MovingReference(
        EpochSource(random_groups(8, vocabulary=200), groups_per_step=2, epochs=1, seed=0, runtime=runtime),
        DpoLossSection(reference="average", reference_every=MOVES_AT),
        engine=LogprobEngine(policy),
        runtime=runtime,
        tokens_per_forward=1000,
    )
    source.share(0)

    def gone(engine: LogprobEngine, groups: Sequence[Group], **options: object) -> list[Group]:
        raise RunStopped("another process failed")

    with monkeypatch.context() as patch:
        patch.setattr(reference_schedule, "reference_logprobs", gone)
        with pytest.raises(RunStopped):
            source.share(step)
    collected = source.collect()
    assert (collected is not None) == known
    if collected is not None:
        collected(tmp_path)
        assert not list(tmp_path.iterdir()), "it has not moved yet"
