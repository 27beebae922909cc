"""Ctrl-C and SIGTERM: the first asks a loop to finish its step and save, the second leaves at once.

Knows nothing about loops: it keeps the wish, and whoever holds it asks.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_WISH = 1.0  # s in which signals are one: a launcher passes on what its workers may have been sent as well
_LAST_WORDS = 2.0  # s that the end of the block waits for a line that nobody reads


class StopSignals:
    """While it is open, the first of these signals sets `received` and is told to `say`; one that comes a
    second or more later ends the program.

    Nothing is damaged by the second: whatever is written is complete or absent. Outside the main thread, where Python
    allows no handlers, it does nothing; a signal that the program was started to ignore stays ignored.

    >>> import os
    >>> with StopSignals(print) as stop:
    ...     os.kill(os.getpid(), signal.SIGTERM)
    SIGTERM: finishing this step and saving; once more leaves at once
    >>> stop.received
    15
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._say = say
        self._before: dict[signal.Signals, Any] = {}
        # A handler runs between two instructions of whatever it interrupts, which may be a line that is being written:
        # it must not write one itself. To put into this queue is safe there, and a thread of its own says it.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._teller: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._teller = threading.Thread(target=self._tell, daemon=True)
            self._teller.start()
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._teller is not None:
            self._lines.put(None)
            self._teller.join(_LAST_WORDS)

    def _tell(self) -> None:
        for line in iter(self._lines.get, None):
            self._say(line)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self.received is not None:
            if time.monotonic() - self._received_at < _SAME_WISH:
                return
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self.received, self._received_at = int(number), time.monotonic()
        self._lines.put(f"{name}: finishing this step and saving; once more leaves at once")
