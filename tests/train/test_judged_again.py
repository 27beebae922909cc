"""A finished run is judged again by as many processes, which hold its weights as they did when it was trained."""

import json
from pathlib import Path

import pytest

from tests.train.test_distributed_runs import Site
from tests.train.test_processes import run_processes

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("method", "trained"), [("grpo", "adapter"), ("dpo", "full"), ("grpo", "full")])
def test_two_processes_with_sharded_layers_find_the_figures_of_the_run(
    tiny_model: Path, tmp_path: Path, method: str, trained: str
) -> None:
    run = Site(tmp_path, tiny_model, method, "fsdp2", trained).run("runs", 2)
    summary = run / "summary.json"
    first = json.loads(summary.read_text())
    summary.write_text(json.dumps({**first, "before": {}, "after": {}}))
    said = run_processes(2, [f"{method}/eval.py", str(run)])
    assert said.count("samples side by side") == 1
    again = json.loads(summary.read_text())
    for part in ("before", "after"):
        assert again[part].keys() == first[part].keys()
        for name, figure in first[part].items():
            assert again[part][name]["value"] == pytest.approx(figure["value"], abs=1e-5), name
