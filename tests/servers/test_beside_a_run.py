"""What starts beside a run, or after one that was killed, on the same servers and in the same folder of versions."""

from pathlib import Path

import pytest

from groupwise.observe.metrics import read_metrics
from grpo import train_grpo
from tests.runs import assert_same_run, before_step
from tests.servers.conftest import Command, start_training
from tests.servers.stand_in import StandIn
from tests.train.test_distributed_runs import wait_for


def test_what_starts_beside_a_run_does_not_touch_it(
    command: Command, tmp_path: Path, servers: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check, the same command again, and a run of the same name in another folder.

    Each of them once unloaded the version that the run was answered with, and deleted it from the disk. The same
    command does not even get as far as the servers.
    """
    train_grpo.main(command(runs="alone"))

    def beside() -> None:
        before = [dict(one.paths) for one in servers]
        assert all(len(paths) == 1 for paths in before)
        for flags, runs, exit_code in ((["--check"], "runs", 0), ([], "runs", 2), ([], "others", 0)):
            loads = [len(one.loads) for one in servers]
            process = start_training(command(*flags, runs=runs))
            said = process.communicate(timeout=300)[0]
            assert process.returncode == exit_code, said
            new = [len(one.loads) - past for one, past in zip(servers, loads, strict=True)]
            assert new == [0, 0] if exit_code else min(new) > 0
            assert [dict(one.paths) for one in servers] == before, (flags, runs)
            assert all(Path(path).is_dir() for paths in before for path in paths.values()), (flags, runs)

    before_step(3, beside, monkeypatch)
    train_grpo.main(command())
    run = tmp_path / "runs" / "run"
    assert all(row["servers/faults"] == 0 for row in read_metrics(run / "metrics.jsonl"))
    last = "checkpoints/step-000004"
    assert_same_run(run, tmp_path / "alone" / "run", last=last, files=("weights.safetensors",))
    assert not list((tmp_path / "versions").iterdir()) and [one.paths for one in servers] == [{}, {}]


def test_what_a_killed_run_left_is_cleaned_when_it_goes_on(
    command: Command, tmp_path: Path, servers: list[StandIn]
) -> None:
    process = start_training(command("--steps", "8"))
    wait_for(tmp_path / "runs" / "run" / "checkpoints" / "step-000002" / "manifest.json")
    process.kill()
    process.communicate(timeout=60)
    left = {name for one in servers for name in one.paths}
    assert left and list((tmp_path / "versions").iterdir())
    train_grpo.main(command("--steps", "8"))
    assert not list((tmp_path / "versions").iterdir()) and [one.paths for one in servers] == [{}, {}]
