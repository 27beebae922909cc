"""Trackers get the numbers of metrics.jsonl; they are read back with the trackers' own readers."""

import json
import sys
from pathlib import Path

import pytest

from dpo import train_dpo
from groupwise.errors import UserError
from groupwise.observe.metrics import read_metrics
from groupwise.train.runtime import Runtime, tracked_names

CONFIG = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA], heldout_groups: 3}
optimizer: {learning_rate: 1.0e-3, warmup_steps: 1}
run: {name: tracked, folder: RUNS, groups_per_step: 9, trackers: TRACKERS, report: false}
epochs: 1
eval: {every: 2, prompts: 2, score: null}
sampling: {max_new_tokens: 4}
"""


def train(tracker: str, tmp_path: Path, tiny_model: Path) -> list[dict[str, float]]:
    rows = [{"prompt": f"Film {i}.", "chosen": " Good.", "rejected": " Bad, bad."} for i in range(1, 31)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = CONFIG.replace("MODEL", str(tiny_model)).replace("DATA", str(data)).replace("TRACKERS", f"[{tracker}]")
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("RUNS", str(tmp_path / "runs")))
    train_dpo.main(["--config", str(config)])
    return read_metrics(tmp_path / "runs" / "tracked" / "metrics.jsonl")


def test_tensorboard_holds_every_metric(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    monkeypatch.chdir(tmp_path)
    metrics = train("tensorboard", tmp_path, tiny_model)
    events = reader.EventAccumulator(str(tmp_path / "runs" / "tracked" / "dpo"))
    events.Reload()
    for name in metrics[-1].keys() - {"step"}:
        wanted = [(row["step"], row[name]) for row in metrics if name in row]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted], name


def test_mlflow_holds_every_metric(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="no mlflow")
    pytest.importorskip("sqlalchemy", reason="no local store without sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    metrics = train("mlflow", tmp_path, tiny_model)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'dpo'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tracked" and run.info.status == "FINISHED"
    assert run.data.params["optimizer.learning_rate"] == "0.001"
    for name in metrics[-1].keys() - {"step"}:
        (tracked,) = tracked_names("mlflow", {name: 0.0})
        wanted = [(row["step"], row[name]) for row in metrics if name in row]
        assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, tracked)] == wanted, name


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "tensorboard"])
def test_a_tracker_that_is_not_there_has_a_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    with pytest.raises(UserError, match=f"run.trackers: {name} is not installed; pip install {name}"):
        Runtime(trackers=(name,))
