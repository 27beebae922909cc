"""Where the time of a step goes. Knows nothing about what is done in it."""

import time

import torch


class PhaseClock:
    """Seconds since the last lap, added up by phase; waits for the device, whose work otherwise is still going on.

    >>> clock = PhaseClock(torch.device("cpu"))
    >>> clock.lap("forward"); clock.lap("backward"); clock.lap("forward")
    >>> list(clock.seconds)
    ['forward', 'backward']
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Give the time since the last lap to a phase."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
