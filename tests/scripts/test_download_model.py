"""The download script, run as a program against a hub of our own on 127.0.0.1.

Knows nothing of the real hub: the small server below speaks as much of its protocol as the script needs. Importing
the hub's library takes longer than all the rest, so most runs share one interpreter, which runs the script as
`__main__` again and again; those that depend on a fresh process have one.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "download_model.py"
COMMIT = "c0ffee" + "0" * 34
REPO = "tiny/gpt2"
TOKEN = "hf_secretOfTheTest"
PICKLE = b"never to be fetched"
RUNNER = """
import contextlib, io, json, os, runpy, sys, time, traceback
time.sleep = lambda seconds: None    # the hub's library waits a second between attempts
for line in sys.stdin:
    argv, extra = json.loads(line)
    before = dict(os.environ)
    os.environ.update(extra)
    sys.argv = argv
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        except Exception:
            code = 1
            traceback.print_exc()
    os.environ.clear()
    os.environ.update(before)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass
class FakeHub:
    """One repository of a hub, and how it misbehaves; `requests` records what it was asked."""

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": COMMIT})
    faults: dict[str, str] = field(default_factory=dict[str, str])  # name -> "short" | "cut" | "cut once" | ...
    listed_size: dict[str, int] = field(default_factory=dict[str, int])  # name -> a size that is not the true one
    gated: bool = False
    requests: list[str] = field(default_factory=list[str])
    hanging: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def siblings(self) -> list[dict[str, Any]]:
        """The file list of `/api/models/...?blobs=true`; weights are in large-file storage, as on the real hub."""
        entries: list[dict[str, Any]] = []
        for name, body in self.files.items():
            size = self.listed_size.get(name, len(body))
            entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": git_sha1(body)}
            if in_lfs(name):
                entry["blobId"] = git_sha1(b"the pointer, not the content")
                entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 134}
            entries.append(entry)
        return entries

    def fetched(self) -> list[str]:
        """Names of the files whose bodies were asked for."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


@dataclass
class Stage:
    """The address at which one hub after another appears."""

    url: str = ""
    hub: FakeHub | None = None


def git_sha1(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


def in_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def handler_of(stage: Stage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.reply(status, X_Error_Code=code, X_Error_Message=message)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub = stage.hub
            assert hub is not None, "a request after the test that asked for it"
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            authorization = self.headers.get("Authorization")
            if authorization not in (None, f"Bearer {TOKEN}"):
                self.reply(401, X_Error_Message="Invalid credentials in Authorization header")
            elif path.startswith(api := f"/api/models/{REPO}/revision/"):
                self.send_listing(hub, path.removeprefix(api))
            elif path.startswith(resolve := f"/{REPO}/resolve/"):
                commit, _, name = path.removeprefix(resolve).partition("/")
                if hub.gated and authorization is None:
                    self.refuse(401, "GatedRepo", f"Access to model {REPO} is restricted.")
                elif commit != COMMIT or name not in hub.files:
                    self.refuse(404, "EntryNotFound", "Entry not found")
                elif hub.faults.get(name) == "forbidden":
                    self.reply(403)
                else:
                    self.send_file(hub, name)
            else:  # the hub does not tell a stranger a missing repository from a private one
                self.refuse(404 if authorization else 401, "RepoNotFound", "Repository not found")

        def send_listing(self, hub: FakeHub, revision: str) -> None:
            commit = COMMIT if revision == COMMIT else hub.revisions.get(revision)
            if commit is None:
                self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return
            answer = {"id": REPO, "sha": commit, "gated": "auto" if hub.gated else False, "siblings": hub.siblings()}
            self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")

        def send_file(self, hub: FakeHub, name: str) -> None:
            body = hub.files[name]
            fault = hub.faults.get(name) if self.command == "GET" else None
            if fault == "cut once":
                hub.faults[name] = ""
            if fault == "flipped":
                body = body[:-1] + bytes([body[-1] ^ 1])
            declared = len(body) // 2 if fault == "short" else len(body)
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{git_sha1(body)}"')
            if in_lfs(name):
                self.send_header("X-Linked-ETag", f'"{hashlib.sha256(hub.files[name]).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("Content-Length", str(declared))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[: len(body) // 2 if fault in ("short", "cut", "cut once", "hanging") else len(body)])
            if fault == "hanging":
                self.wfile.flush()
                hub.hanging.set()
                hub.closing.wait()

    return Handler


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A server in a thread, stopped after the last test of this file."""
    stage = Stage()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(stage))
    stage.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stage
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def serve(stage: Stage) -> Iterator[Callable[[FakeHub], FakeHub]]:
    """Put a hub at the address until the test ends."""

    def start(hub: FakeHub) -> FakeHub:
        stage.hub = hub
        return hub

    yield start
    if stage.hub:
        stage.hub.closing.set()
    stage.hub = None


def environment(url: str, home: Path, **extra: str) -> dict[str, str]:
    """What the script runs in: this process's environment, with nothing of it that speaks to the hub's library."""
    foreign = ("HF_", "HUGGING", "PYTHON", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(foreign)}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept | own | {"PYTHONPATH": str(ROOT)} | extra


@pytest.fixture(scope="module")
def runner(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """An interpreter that runs the script with each command line it is handed."""
    home = tmp_path_factory.mktemp("home")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER], env=environment(stage.url, home), cwd=home, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


@dataclass
class Shell:
    """Runs the script, by default with `work/model` as destination."""

    work: Path
    home: Path
    url: str
    runner: subprocess.Popen[str]

    @property
    def model(self) -> Path:
        return self.work / "model"

    def fresh(self, *argv: str, url: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
        """Run it in a process of its own, against `url` where given."""
        return subprocess.run(
            [sys.executable, *argv],
            env=environment(url or self.url, self.home, **extra),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def run(self, *argv: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run it in the shared interpreter."""
        assert self.runner.stdin is not None and self.runner.stdout is not None
        self.runner.stdin.write(json.dumps([argv, extra]) + "\n")
        self.runner.stdin.flush()
        code, out, err = json.loads(self.runner.stdout.readline())
        return subprocess.CompletedProcess(argv, code, out, err)

    def download(self, *options: str, repo: str = REPO, **extra: str) -> subprocess.CompletedProcess[str]:
        return self.run(*self.command(*options, repo=repo), **extra)

    def command(self, *options: str, repo: str = REPO) -> list[str]:
        return [str(SCRIPT), repo, "--to", str(self.model), *options]

    def refused(self, done: subprocess.CompletedProcess[str]) -> str:
        """What it said of a failure: exit code 2, the reason on stderr without a traceback, and nothing left behind."""
        assert done.returncode == 2, done
        assert "Traceback" not in done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert list(self.work.iterdir()) == []
        return done.stderr


@pytest.fixture
def shell(tmp_path: Path, stage: Stage, runner: subprocess.Popen[str]) -> Shell:
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    return Shell(work=tmp_path / "work", home=tmp_path / "home", url=stage.url, runner=runner)


@pytest.fixture
def files() -> dict[str, bytes]:
    """A repository whose files the hub lists but nobody loads."""
    return {
        "config.json": b'{"model_type": "gpt2"}',
        "model.safetensors": b"weights" * 1000,
        "pytorch_model.bin": PICKLE,
    }


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A random GPT-2 of a few thousand weights with a byte-level tokenizer, as one safetensors file and as shards.

    The two sets of files are in `whole/` and `sharded/`.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_gpt2")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["a tiny model"], vocab_size=257, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    for name, shard_size in (("whole", "1MB"), ("sharded", "8KB")):
        model.save_pretrained(folder / name, max_shard_size=shard_size)
        fast.save_pretrained(folder / name)
    return {str(path.relative_to(folder).as_posix()): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def under(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removeprefix(prefix): body for name, body in files.items() if name.startswith(prefix)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits(folder: Path) -> Any:
    """What a model folder says of a text, loaded without any network."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)("tiny", return_tensors="pt").input_ids
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)(input_ids=ids).logits


def test_model_arrives_whole_recorded_and_loads(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, tiny_gpt2: dict[str, bytes], tmp_path: Path
) -> None:
    wanted = under("whole/", tiny_gpt2) | {"merges.txt": b"#version: 0.2\n", "chat_template.jinja": b"{{ messages }}"}
    unwanted = {
        "pytorch_model.bin": PICKLE,
        "pytorch_model.bin.index.json": b"{}",
        "modeling_tiny.py": b"raise SystemExit",
        "tf_model.h5": b"h5",
        "flax_model.msgpack": b"flax",
        "README.md": b"card",
        "onnx/model.onnx": b"onnx",
        "onnx/config.json": b"{}",
        "fp16/model.safetensors": b"other weights",
        "consolidated.safetensors": b"the same weights again",  # as some publishers add for their own runtime
        "source.json": b"would be mistaken for ours",
    }
    hub = serve(FakeHub(wanted | unwanted))

    done = shell.fresh(*shell.command("--revision", "v1"))

    assert done.returncode == 0, done
    source = json.loads((shell.model / "source.json").read_text())
    assert source == {
        "repo": REPO,
        "revision": "v1",
        "commit": COMMIT,
        "files": {
            name: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()} for name, body in wanted.items()
        },
    }
    arrived = contents(shell.model)
    del arrived["source.json"]
    assert arrived == wanted
    assert sorted(hub.fetched()) == sorted(wanted)  # each once, and nothing else was so much as asked for
    assert list(shell.work.iterdir()) == [shell.model]

    original = tmp_path / "original"
    original.mkdir()
    for name, body in under("whole/", tiny_gpt2).items():
        (original / name).write_bytes(body)
    assert logits(shell.model).equal(logits(original))


def test_sharded_model_arrives_with_the_shards_of_its_index_and_loads(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, tiny_gpt2: dict[str, bytes], tmp_path: Path
) -> None:
    wanted = under("sharded/", tiny_gpt2)
    assert "model.safetensors" not in wanted and sum(name.endswith(".safetensors") for name in wanted) > 1
    hub = serve(FakeHub(wanted | {"consolidated.safetensors": b"the same weights again"}))

    done = shell.download()

    assert done.returncode == 0, done
    assert sorted(hub.fetched()) == sorted(wanted)
    original = tmp_path / "original"
    original.mkdir()
    for name, body in under("whole/", tiny_gpt2).items():
        (original / name).write_bytes(body)
    assert logits(shell.model).equal(logits(original))


def test_default_destination_is_named_after_the_repository(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    serve(FakeHub(files))
    script = shell.work / "scripts" / "download_model.py"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    assert shell.run(str(script), REPO).returncode == 0
    assert (shell.work / "model" / "gpt2" / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.parametrize("token", [None, TOKEN])
def test_missing_repository(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes], token: str | None
) -> None:
    serve(FakeHub(files))
    said = shell.refused(shell.download(repo="tiny/absent", **({"HF_TOKEN": token} if token else {})))
    assert "no model repository tiny/absent" in said
    assert "HF_TOKEN" in said


def test_missing_revision(serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]) -> None:
    serve(FakeHub(files))
    assert f"{REPO} has no revision 'v9'" in shell.refused(shell.download("--revision", "v9"))


def test_gated_repository_needs_a_token(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    serve(FakeHub(files, gated=True))
    said = shell.refused(shell.download())
    assert f"{REPO} is gated" in said and "HF_TOKEN" in said
    assert shell.download(HF_TOKEN=TOKEN).returncode == 0


def test_wrong_token(serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]) -> None:
    serve(FakeHub(files))
    said = shell.refused(shell.download(HF_TOKEN="hf_expired"))
    assert "Check the access token in HF_TOKEN" in said
    assert "hf_expired" not in said


def test_refusal_of_one_file_is_named_with_its_cause(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    # The hub's library reports this as "not in the cache, check your connection" and hides the 403 beneath.
    serve(FakeHub(files, faults={"model.safetensors": "forbidden"}))
    said = shell.refused(shell.download(HF_TOKEN=TOKEN))
    assert f"model.safetensors: {shell.url} refuses access to {REPO} (403)" in said and "HF_TOKEN" in said


def test_no_network(shell: Shell) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
    said = shell.refused(shell.fresh(*shell.command(), url=url))  # the port is closed again
    assert f"no connection to {url}" in said and "HF_ENDPOINT" in said


def test_offline_mode_is_named(shell: Shell) -> None:
    assert "HF_HUB_OFFLINE is set" in shell.refused(shell.fresh(*shell.command(), HF_HUB_OFFLINE="1"))


def test_name_that_is_no_repository(shell: Shell) -> None:
    assert "'../../etc' is not the name of a repository" in shell.refused(shell.download(repo="../../etc"))


@pytest.mark.parametrize(
    ("name", "fault", "reason"),
    [
        ("model.safetensors", "short", "model.safetensors: "),  # a proxy that declares the half it sends
        ("model.safetensors", "flipped", "model.safetensors arrived damaged: SHA-256"),
        ("config.json", "flipped", "config.json arrived damaged: git SHA-1"),
    ],
    ids=lambda value: value.partition(":")[0],
)
def test_damaged_transfer_leaves_nothing(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes], name: str, fault: str, reason: str
) -> None:
    serve(FakeHub(files, faults={name: fault}))
    said = shell.refused(shell.download())
    assert reason in said
    assert "Nothing was kept" in said


def test_connection_that_always_breaks_leaves_nothing_and_one_that_breaks_once_is_forgiven(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    hub = serve(FakeHub(files, faults={"model.safetensors": "cut"}))
    assert f"model.safetensors: no connection to {shell.url}" in shell.refused(shell.download())
    hub.faults["model.safetensors"] = "cut once"
    assert shell.download().returncode == 0
    assert (shell.model / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_terminated_in_the_middle_leaves_nothing(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    hub = serve(FakeHub(files, faults={"model.safetensors": "hanging"}))
    command = [sys.executable, *shell.command()]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment(shell.url, shell.home), stdout=quiet, stderr=quiet) as process:
        try:
            assert hub.hanging.wait(timeout=30)
            (partial,) = shell.work.iterdir()
            assert partial.name.startswith(".model.partial-") and not shell.model.exists()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 143
        finally:
            process.kill()
    assert list(shell.work.iterdir()) == []


def test_second_run_finds_it_there_without_fetching(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    hub = serve(FakeHub(files))
    assert shell.download().returncode == 0
    fetched = hub.fetched()
    again = shell.download()
    assert again.returncode == 0 and "already there" in again.stdout
    assert hub.fetched() == fetched
    # A commit names its content for ever, so finding it there takes no hub.
    hub.requests.clear()
    pinned = shell.download("--revision", COMMIT)
    assert pinned.returncode == 0 and "already there" in pinned.stdout
    assert hub.requests == []


def test_model_that_is_not_the_one_asked_for_is_left_alone(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    hub = serve(FakeHub(files))
    assert shell.download().returncode == 0

    hub.revisions["main"] = "beef" * 10  # the branch has moved on
    moved = shell.download()
    assert moved.returncode == 2 and COMMIT in moved.stderr and "beef" * 10 in moved.stderr

    weights = shell.model / "model.safetensors"
    weights.write_bytes(b"WEIGHTS" * 1000)
    (shell.model / "config.json").unlink()
    before = contents(shell.model)
    changed = shell.download("--revision", COMMIT)
    assert changed.returncode == 2
    assert "model.safetensors: content differs" in changed.stderr and "config.json: missing" in changed.stderr
    assert contents(shell.model) == before


def test_occupied_destination_is_left_alone(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    shell.model.mkdir()
    (shell.model / "thesis.txt").write_text("years of work")
    hub = serve(FakeHub(files))
    done = shell.download()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{shell.model} already exists" in done.stderr and "--to" in done.stderr
    assert contents(shell.work) == {os.path.join("model", "thesis.txt"): b"years of work"}
    assert hub.requests == []
    inside_a_file = shell.run(str(SCRIPT), REPO, "--to", str(shell.model / "thesis.txt" / "model"))
    assert inside_a_file.returncode == 2 and "Traceback" not in inside_a_file.stderr
    assert hub.fetched() == []


def test_empty_folder_behind_a_link_is_filled(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    (shell.work / "disk" / "empty").mkdir(parents=True)
    shell.model.symlink_to(shell.work / "disk" / "empty")
    serve(FakeHub(files))
    assert shell.download().returncode == 0
    assert shell.model.is_symlink()
    assert sorted(contents(shell.work / "disk" / "empty")) == ["config.json", "model.safetensors", "source.json"]


def test_only_pickle_weights(serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]) -> None:
    del files["model.safetensors"]
    hub = serve(FakeHub(files))
    said = shell.refused(shell.download())
    assert "no model.safetensors" in said and "only pickle weights (pytorch_model.bin)" in said
    assert hub.fetched() == []


def test_index_that_names_an_absent_shard(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    del files["model.safetensors"]
    present, absent = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = {"weight_map": {"wte.weight": present, "wpe.weight": absent}}
    serve(FakeHub(files | {present: b"one", "model.safetensors.index.json": json.dumps(index).encode()}))
    said = shell.refused(shell.download())
    assert absent in said and present not in said


def test_full_disk_is_found_before_the_weights_are_fetched(
    serve: Callable[[FakeHub], FakeHub], shell: Shell, files: dict[str, bytes]
) -> None:
    hub = serve(FakeHub(files, listed_size={"model.safetensors": 10**18}))
    said = shell.refused(shell.download())
    assert "needs 1000000000.0 GB" in said and "free" in said
    assert hub.fetched() == []


def test_help_loads_no_heavy_library(shell: Shell) -> None:
    done = shell.fresh("-X", "importtime", str(SCRIPT), "--help")
    assert done.returncode == 0 and "--revision" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"huggingface_hub", "torch", "transformers", "pydantic"}


def test_docstring_examples_run(shell: Shell) -> None:
    done = shell.fresh("-m", "doctest", "-v", str(SCRIPT))
    assert done.returncode == 0 and "Trying:" in done.stdout, done.stdout
