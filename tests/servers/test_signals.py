"""Ctrl-C and SIGTERM while servers are slow or silent: the second one leaves at once, whatever they do."""

import signal
import time
from pathlib import Path

import pytest

from tests.servers.conftest import Command, start_training
from tests.servers.faults import COMPLETIONS
from tests.servers.proxy import Gate, Proxy
from tests.servers.stand_in import StandIn


@pytest.mark.parametrize("mute", [False, True], ids=["slow", "mute"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_leaves_at_once(
    number: signal.Signals, mute: bool, command: Command, tmp_path: Path, servers: list[StandIn], gate: Gate
) -> None:
    """The answers that it waits for never come; a mute server answers nothing at all.

    The program once waited for them, and then for the thread that had asked: as long as `answer_limit`.
    """
    proxies = [Proxy(one.address) for one in servers]
    for proxy in proxies:
        proxy.faulty(COMPLETIONS, gate, times=10**6)
    process = start_training(command(addresses=[proxy.address for proxy in proxies]))
    try:
        assert gate.reached.wait(120)
        for path in ("/v1/models", "/v1/unload_lora_adapter") if mute else ():
            for proxy in proxies:
                proxy.faulty(path, gate, times=10**6)
        process.send_signal(number)
        assert process.stdout is not None
        said = ""
        while "once more leaves at once" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        time.sleep(1.5)  # at once it would be the same wish
        process.send_signal(number)
        said += process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert not list((tmp_path / "versions").iterdir())
    if not mute:
        assert [one.paths for one in servers] == [{}, {}]
