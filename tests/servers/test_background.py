"""Waiting in the main thread for what runs in another."""

import asyncio
import signal
import threading
import time
from types import FrameType

import pytest

from groupwise.servers.background import Background, result_of


class Heard(Exception):
    """A signal was heeded."""


def test_a_signal_that_interrupts_no_wait_is_heeded_all_the_same() -> None:
    """One that comes just before the wait leaves only a note for the interpreter, as one to another thread does.

    The second Ctrl-C was once lost so, about one time in thirty, and the program waited for the answer.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        raise Heard

    def elsewhere() -> None:
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    background = Background("waiting")
    never = background.submit(asyncio.sleep, 3600)
    end = threading.Timer(10.0, never.cancel)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Thread(target=elsewhere).start()
        end.start()
        with pytest.raises(Heard):
            result_of(never)
        assert not never.done(), "it was heeded when the wait was over"
    finally:
        signal.signal(signal.SIGUSR1, before)
        end.cancel()
        background.close(lambda: asyncio.sleep(0), limit=1)


def test_what_was_raised_elsewhere_is_raised_here() -> None:
    """A time limit of what was waited for is not taken for one of the wait."""

    async def late() -> None:
        raise TimeoutError("of its own")

    background = Background("waiting")
    with pytest.raises(TimeoutError, match="of its own"):
        result_of(background.submit(late))
    background.close(lambda: asyncio.sleep(0), limit=1)
