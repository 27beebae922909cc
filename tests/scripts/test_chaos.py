"""A handful of kills; `python scripts/chaos.py --kills 100` makes the figures that the documentation quotes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_kills_leave_every_byte_as_it_was(tmp_path: Path) -> None:
    """The peer recovers from 0 of 6 kills inside a save. GRPO's state holds all of DPO's, and rollouts besides."""
    command = [sys.executable, "scripts/chaos.py", "--algorithm", "grpo", "--kills", "4", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every byte is that of the run left alone" in done.stdout
