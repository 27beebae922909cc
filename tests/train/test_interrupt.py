"""The first signal is noted and told, whatever it interrupts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groupwise.train import interrupt
from groupwise.train.interrupt import StopSignals

ROOT = Path(__file__).resolve().parents[2]


def test_a_signal_in_the_middle_of_a_line_is_told_behind_it() -> None:
    """Told by the handler itself it met the line's own write: "reentrant call inside BufferedWriter", exit code 1."""
    count = 2**21  # more than a pipe holds: the write goes on until somebody reads
    program = f"""
import sys
from groupwise.train.interrupt import StopSignals
with StopSignals(lambda line: print(line, flush=True)):
    print("x" * {count}, flush=True)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read(1) == "x"
        child.send_signal(signal.SIGTERM)
        rest = child.stdout.read()
    assert child.returncode == 0
    assert rest.count("x") == count - 1
    assert rest.strip("x\n") == "SIGTERM: finishing this step and saving; once more leaves at once"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_twice_at_once_is_one_wish(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun passes on what was sent to it and, by the same command, to its workers: nothing was saved then."""
    said: list[str] = []
    with StopSignals(said.append) as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.received == number
        now = time.monotonic()
        monkeypatch.setattr(interrupt.time, "monotonic", lambda: now + 1.5)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            os.kill(os.getpid(), number)
    assert len(said) == 1
