"""A run that ends while the groups of a step are gathered loses nothing that was learned."""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dpo.loss_config import DpoLossSection
from dpo.objective import DpoObjective
from dpo.report import watched
from groupwise.errors import Interrupted, RunStopped
from groupwise.groups import Group, NotFinite
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.observe.alarms import Alarms
from groupwise.observe.heldout import Evaluation
from groupwise.observe.progress import make_progress
from groupwise.sections import AlarmsSection, LoraSection, ModelSection, OptimizerSection, RunSection
from groupwise.train.interrupt import StopSignals
from groupwise.train.loop import Judging, Watch, fit
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare
from groupwise.train.source import GroupSource
from tests.conftest import random_groups
from tests.runs import digests

RUNTIME = Runtime()
LOSS = DpoLossSection(objective="simpo")
EVERY = 4
OUTAGES: dict[str, Callable[[], Exception]] = {
    "servers are gone": lambda: RunStopped("none of 2 servers answers"),
    "a signal ends the wait for them": lambda: Interrupted("stopped while no server answered", 15),
}


@dataclass
class Asking:
    """A source that asks for the next two of its groups, and draws one number of the global generators for a step.

    At the step `fails_at` it does both, and then raises. `undone`: it then remembers what was before.
    """

    groups: Sequence[Group]
    fails_at: int | None = None
    error: Callable[[], Exception] = OUTAGES["servers are gone"]
    undone: bool = True
    asked: int = 0
    drawn: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])
    lost: bool = False

    total_steps = 6

    def share(self, step: int) -> StepShare:
        before = self.asked
        self.asked += 2
        self.drawn[step] = random.random(), torch.rand(()).item()
        if step == self.fails_at:
            if self.undone:
                self.asked = before
            self.lost = not self.undone
            raise self.error()
        return StepShare.of(self.groups[before : before + 2], RUNTIME)

    def passed_over(self, count: int) -> Sequence[tuple[Group, str]]:
        return ()

    def metrics(self) -> Mapping[str, float]:
        return {}

    def collect(self) -> Callable[[Path], None] | None:
        asked = self.asked

        def write(folder: Path) -> None:
            (folder / "asked").write_text(str(asked))

        return None if self.lost else write

    def restore(self, folder: Path) -> None:
        self.asked = int((folder / "asked").read_text())


def train(model: Path, folder: Path, source: GroupSource) -> str:
    """Train as far as it goes, checkpoints after every fourth step; what is said."""
    random.seed(7)
    torch.manual_seed(7)
    policy = Policy.load(ModelSection(path=str(model)), LoraSection(rank=2), seed=0, device="cpu")
    console = Console(file=io.StringIO(), width=1000)
    progress = make_progress(console)
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        fit(
            DpoObjective.of(LOSS),
            source,
            engine=LogprobEngine(policy),
            optimizer_section=OptimizerSection(learning_rate=1e-2, warmup_steps=0),
            run=RunSection(name="run", checkpoint_every=EVERY),
            runtime=RUNTIME,
            folder=run,
            identity={},
            judging=Judging(
                evaluate=lambda step: Evaluation({}, [], {}), every=0, evaluated=lambda: None, best="nothing"
            ),
            watch=Watch(
                progress=progress,
                title="test",
                alarms=Alarms(AlarmsSection(), watched(LOSS)),
                stop=StopSignals(progress.line),
            ),
        )
    finally:
        assert isinstance(console.file, io.StringIO)
        said = console.file.getvalue()
        (folder / "said").write_text(said)
    return said


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def groups() -> list[Group]:
    return random_groups(12, vocabulary=200)


@pytest.mark.parametrize("outage", OUTAGES)
def test_what_was_learned_is_saved_before_the_run_ends_and_continued_with_the_same_bytes(
    tiny_model: Path, tmp_path: Path, groups: list[Group], outage: str
) -> None:
    """Up to `checkpoint_every` steps were lost to a server that was away for long, the weights being intact.

    What the step that failed drew from the global generators is drawn again.
    """
    straight = Asking(groups)
    train(tiny_model, tmp_path / "straight", straight)
    failing = Asking(groups, fails_at=3, error=OUTAGES[outage])
    with pytest.raises((RunStopped, Interrupted), match="server"):
        train(tiny_model, tmp_path / "run", failing)
    assert steps(tmp_path / "run") == ["step-000003"], "three steps were done"
    continued = Asking(groups)
    said = train(tiny_model, tmp_path / "run", continued)
    assert "step-000003: step 3" in said
    assert continued.drawn == {step: straight.drawn[step] for step in (3, 4, 5)}
    last = Path("checkpoints") / "step-000006"
    for name in ("weights.safetensors", "optimizer.safetensors", "generators.safetensors", "asked"):
        assert digests(tmp_path / "run" / last)[name] == digests(tmp_path / "straight" / last)[name], name
    rows = [(tmp_path / name / "transcripts.jsonl").read_bytes() for name in ("run", "straight")]
    assert rows[0] == rows[1]


def test_a_step_that_cannot_be_undone_is_not_saved_and_that_is_said(
    tiny_model: Path, tmp_path: Path, groups: list[Group]
) -> None:
    """A continued run would pass over the groups of the step that failed."""
    with pytest.raises(RunStopped, match="none of 2 servers"):
        train(tiny_model, tmp_path, Asking(groups, fails_at=5, undone=False))
    assert steps(tmp_path) == ["step-000004"]
    assert "step 5 could not be saved" in (tmp_path / "said").read_text()


def test_weights_that_may_hold_what_is_not_finite_are_not_saved(
    tiny_model: Path, tmp_path: Path, groups: list[Group]
) -> None:
    """Sampling that finds NaN says nothing of when it came into the weights; the older checkpoint is the better one."""
    with pytest.raises(RunStopped, match="sampled log-probs are not finite"):
        train(
            tiny_model,
            tmp_path,
            Asking(groups, fails_at=5, error=lambda: NotFinite("sampled log-probs are", groups[:1])),
        )
    assert steps(tmp_path) == ["step-000004"]


@pytest.mark.parametrize(("fails_at", "there"), [(0, []), (4, ["step-000004"])])
def test_nothing_is_saved_where_nothing_was_learned_since(
    tiny_model: Path, tmp_path: Path, groups: list[Group], fails_at: int, there: list[str]
) -> None:
    """Also of a run that was continued and stops at once, as it does while servers stay away."""
    for _ in range(2):
        with pytest.raises(RunStopped):
            train(tiny_model, tmp_path, Asking(groups, fails_at=fails_at))
        assert steps(tmp_path) == there
    if there:
        written = (tmp_path / "checkpoints" / there[0]).stat().st_ino
        with pytest.raises(RunStopped):
            train(tiny_model, tmp_path, Asking(groups, fails_at=fails_at))
        assert (tmp_path / "checkpoints" / there[0]).stat().st_ino == written
