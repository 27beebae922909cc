"""The process that rewards run in: reads requests from its standard input, one JSON object a line, and answers each.

Knows nothing about time limits it must keep (the parent kills it), policies or weights. What a reward prints, even from
C, goes to standard error: the pipe with the answers is moved out of its reach first.
"""

import faulthandler
import hashlib
import json
import os
import random
import resource
import signal
import sys
import traceback
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import Any

from groupwise.errors import UserError
from groupwise.rewards import wire
from groupwise.rewards.protocol import Reward, looks_at_one_completion, scores_steps
from groupwise.rewards.registry import make_reward

MESSAGE_LIMIT = 2000  # characters of an exception that are passed on
ORPHAN_GRACE_S = 2.0  # a parent that lives kills a late worker within a second


class Rewards:
    """The rewards this process has loaded, by their place in the configuration."""

    def __init__(self) -> None:
        self._loaded: dict[int, Reward] = {}
        self._files: dict[Path, ModuleType] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request, whatever the reward does short of ending the process."""
        if request["do"] == "load":
            return self._load(request)
        return self._score(request)

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        key = request["key"]
        try:
            reward, problems = make_reward(request["name"], request["options"], key, self._files)
        except BaseException as error:
            reward, problems = None, [f"{key}: {request['name']} cannot be loaded: {_described(error)}"]
        if reward is None:
            return {"problems": problems}
        self._loaded[request["index"]] = reward
        return {"per_completion": looks_at_one_completion(reward), "scores_steps": scores_steps(reward)}

    def _score(self, request: dict[str, Any]) -> dict[str, Any]:
        rows = [request["rows"][place] for place in request["row_of"]]
        _seed(request)
        try:
            reward, answers = self._loaded[request["index"]], wire.answers_from_plain(request["completions"])
            result = reward(rows, answers)
            if scores_steps(reward):
                scores = wire.steps_of(result, [answer.text for answer in answers])
            else:
                scores = wire.scores_of(result, len(rows))
        except UserError as error:
            return {"user_error": str(error)}
        except BaseException as error:  # SystemExit too: a reward that calls sys.exit() has failed, not finished
            return {"bad": ["raised", _described(error)]}
        if isinstance(scores, wire.Bad):
            return {"bad": [scores.kind, scores.message]}
        return {"scores": wire.scores_to_plain(scores)}


def _seed(request: dict[str, Any]) -> None:
    """Give every call the random numbers that belong to its input, whichever worker it reaches and whatever ran before.

    numpy and torch are seeded where the reward has imported them.
    """
    content = json.dumps([request["index"], request["rows"], request["row_of"], request["completions"]])
    seed = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=4).digest(), "big")
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _described(error: BaseException) -> str:
    """An exception and the line that raised it."""
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be read)"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text[:MESSAGE_LIMIT]}{where}"


def _take_pipes() -> tuple[BufferedReader, int]:
    """Move the two protocol pipes to descriptors that a reward and its children do not touch."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _send(descriptor: int, answer: dict[str, Any]) -> None:
    line = memoryview(json.dumps(answer, allow_nan=False).encode() + b"\n")
    while line:
        line = line[os.write(descriptor, line) :]


def _end_if_orphaned_after(seconds: float) -> None:
    """Let the kernel end this process then: the parent kills it long before, unless the parent has died itself."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Serve until the parent closes the pipe; then end the whole process group, children of rewards included."""
    requests, answers = _take_pipes()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()  # SIGSEGV, and the parent's SIGABRT when time is up, show where it happened
    rewards, process = Rewards(), os.getpid()
    for line in requests:
        request = json.loads(line)
        _end_if_orphaned_after(request["limit_s"] + ORPHAN_GRACE_S)
        answer = rewards.answer(request)
        if os.getpid() != process:
            os._exit(1)  # a child that a reward forked and let return: it must not answer too
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            _send(answers, answer | {"id": request["id"]})
        except OSError:
            break
    if os.getsid(0) == process:
        os.killpg(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
