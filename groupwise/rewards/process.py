"""One worker process: started when needed, asked with a time limit, killed with all its children when it fails.

Knows nothing about rewards, scores or policies. Needs POSIX: process groups, signals and pipes.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

TAIL_BYTES = 2000  # of standard error that a message quotes
LOOK_S = 0.2  # between looks whether a silent process still lives
LAST_WORDS_S = 0.5  # to say where it hangs, or to finish dying
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in every worker
}
# What a program needs of its surroundings; everything else may be a secret, and rewards may be anybody's code.
_PASSED = frozenset(
    (
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP",
        "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
        "HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TORCH_HOME",
    )
)  # fmt: skip
_PASSED_FAMILIES = ("LC_", "PYTHON", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "XDG_")
# The parent's search path, whatever changed it; -P keeps the working directory out unless the parent has it too.
START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from groupwise.rewards.worker import main; main()"


class WorkerLost(Exception):
    """The worker did not answer and is gone; `kind` says how, the message why, with the end of its standard error."""

    def __init__(self, kind: Literal["timed out", "died"], message: str) -> None:
        super().__init__(message)
        self.kind: Literal["timed out", "died"] = kind


class WorkerProcess:
    """A process that answers one request at a time; belongs to one thread at a time, but any may call `end`."""

    def __init__(self, cwd: str, *, environment: Sequence[str] = ()) -> None:
        """`environment` names variables that the process gets besides the harmless ones."""
        self.loaded: set[int] = set()  # what the caller has had this very process load
        self._cwd = cwd
        self._environment = frozenset(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._received = b""
        self._tail = b""
        self._requests = 0
        self._ended = False
        self._lock = threading.Lock()  # between an end from outside and the start or the wait that changes the process

    def is_alive(self) -> bool:
        """Whether there is a process; one that ended while idle is cleared away, and is no fault of a request."""
        if self._process is not None and self._has_ended():
            self._kill_and_reap()
        return self._process is not None

    def request(self, message: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Send a message, starting the process if there is none, and wait for its answer.

        Raises WorkerLost after at most `limit_s` and a second; the next request starts a new process.
        """
        if self._process is None:
            self._start()
        self._requests += 1
        self._received = self._tail = b""
        line = json.dumps({**message, "id": self._requests, "limit_s": limit_s}).encode() + b"\n"
        answer = self._exchange(line, time.monotonic() + limit_s)
        if answer is None:
            raise self._lost("timed out", f"no answer within {limit_s:g} s")
        try:
            plain = json.loads(answer)
        except ValueError:
            plain = None
        if not isinstance(plain, dict) or plain.get("id") != self._requests:  # pyright: ignore
            raise self._lost("died", "sent something that is no answer")
        return plain  # pyright: ignore[reportUnknownVariableType]

    def end(self) -> None:
        """Kill the process and its group, for good; a request under way raises WorkerLost, and so does any later."""
        with self._lock:
            self._ended = True
            self._kill_group()

    def free(self) -> None:
        """Give back what the process held; after `end`, when no request is under way."""
        self._reap()

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _start(self) -> None:
        with self._lock:
            if self._ended:
                raise WorkerLost("died", "the worker was ended")
            process = self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=self._cwd,
                env={**_scrubbed(os.environ, self._environment), **ONE_THREAD},
                start_new_session=True,
            )
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        assert process.stdout is not None and process.stderr is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, "answer")
        self._selector.register(process.stderr, selectors.EVENT_READ, "tail")
        self.loaded = set()

    def _exchange(self, line: bytes, deadline: float) -> bytes | None:
        """The line that answers, None when the time is up."""
        process = self._process
        assert process is not None and process.stdin is not None
        unsent = memoryview(line)
        self._selector.register(process.stdin, selectors.EVENT_WRITE, "request")
        try:
            while (left := deadline - time.monotonic()) > 0:
                events = self._selector.select(min(left, LOOK_S))
                for event, _ in events:
                    if event.data == "request":
                        unsent = self._write(event.fd, unsent)
                        if not unsent:
                            self._selector.unregister(process.stdin)
                    elif event.data == "tail":
                        self._read_tail()
                    elif self._read_answer(event.fd):
                        return self._received
                if not events and self._has_ended():
                    raise self._lost("died", "")
            return None
        finally:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(process.stdin)

    def _write(self, descriptor: int, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(descriptor, unsent[:65536]) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:
            return unsent[:0]  # nobody reads: the other pipe is about to say why

    def _read_answer(self, descriptor: int) -> bool:
        """Whether a whole line has come."""
        try:
            chunk = os.read(descriptor, 65536)
        except BlockingIOError:
            return False
        if not chunk:
            raise self._lost("died", "")
        self._received += chunk
        return chunk.endswith(b"\n")

    def _read_tail(self) -> bool:
        """Whether standard error held something to read."""
        assert self._process is not None and self._process.stderr is not None
        pipe = self._process.stderr
        try:
            chunk = os.read(pipe.fileno(), 65536)
        except BlockingIOError:
            return False
        if not chunk:
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        return bool(chunk)

    def _has_ended(self) -> bool:
        """Whether the process has exited; leaves it a zombie, so that its group can still be named."""
        assert self._process is not None
        if not hasattr(os, "waitid"):  # macOS: it is no zombie then, but a group can be named while a member lives
            return self._process.poll() is not None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def _lost(self, kind: Literal["timed out", "died"], message: str) -> WorkerLost:
        """Kill and reap; the exception to raise."""
        assert self._process is not None
        if kind == "timed out":
            os.kill(self._process.pid, signal.SIGABRT)  # its handler writes down where it hangs
        end = time.monotonic() + LAST_WORDS_S
        while not self._has_ended() and time.monotonic() < end:
            self._read_tail()
            time.sleep(0.01)
        ended_itself = kind == "died" and self._has_ended()
        for _ in range(16):  # a child may go on writing for ever
            if not self._read_tail():
                break
        status = self._kill_and_reap()
        if kind == "died" and not message:
            message = _status_in_words(status) if ended_itself else "closed its pipe without an answer"
        tail = self._tail.decode(errors="replace").strip()
        return WorkerLost(kind, f"{message}; it wrote: {tail}" if tail else message)

    def _kill_and_reap(self) -> int:
        with self._lock:
            self._kill_group()
        return self._reap()

    def _reap(self) -> int:
        process = self._process
        if process is None:
            return 0
        with self._lock:
            status = process.wait()
            self._process = None
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return status


def _scrubbed(environment: Mapping[str, str], wanted: frozenset[str]) -> dict[str, str]:
    """The variables that are harmless or wanted.

    >>> _scrubbed({"PATH": "/bin", "HF_TOKEN": "hf_x", "JUDGE_KEY": "k"}, frozenset(("JUDGE_KEY",)))
    {'PATH': '/bin', 'JUDGE_KEY': 'k'}
    """
    return {
        name: value
        for name, value in environment.items()
        if name in _PASSED or name in wanted or name.startswith(_PASSED_FAMILIES)
    }


def _status_in_words(status: int) -> str:
    if status >= 0:
        return f"the process ended with exit status {status}"
    known = {int(number): number.name for number in signal.Signals}
    return f"the process was killed by {known.get(-status, f'signal {-status}')}"
