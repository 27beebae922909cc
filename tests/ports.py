"""Ports for programs that tests start."""

import random
import socket


def free_port() -> int:
    """A port that is still free when a process binds it seconds later.

    One below those that systems give to whoever asks for any: one of these another program may have by then.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("100 ports between 20000 and 32000 were tried, none is free")
