"""What SECURITY.md promises: no pickle, no foreign code, no network, no secrets on disk."""

import json
import re
import socket
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dpo import dpo_trainer, train_dpo
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import Scorer
from groupwise.sections import RewardSection, ScoringSection
from grpo import train_grpo

ROOT = Path(__file__).resolve().parents[1]
OURS = ("groupwise", "dpo", "grpo", "scripts", "benchmarks")
# Each of them can run code that a file brings along.
DANGEROUS = re.compile(
    r"\b(pickle|cloudpickle|dill|joblib|marshal|shelve)\b|torch\.(load|save)\(|yaml\.(load|unsafe_load|full_load)\("
    r"|allow_pickle|weights_only|(?<![\w.])(eval|exec)\(|os\.system|shell=True|trust_remote_code=True"
)
OUTPUTS = {".yaml", ".json", ".jsonl", ".safetensors", ".png", ".txt", ".jinja", ".html"}


def sources() -> Iterator[Path]:
    for folder in OURS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def code_of(file: Path) -> list[str]:
    """The lines of a file without comments and texts."""
    lines = [list(line) for line in file.read_text().splitlines()]
    with file.open() as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type not in (tokenize.COMMENT, tokenize.STRING):
                continue
            for number in range(token.start[0], token.end[0] + 1):
                line = lines[number - 1]
                first = token.start[1] if number == token.start[0] else 0
                last = token.end[1] if number == token.end[0] else len(line)
                line[first:last] = " " * (last - first)
    return ["".join(line) for line in lines]


def test_the_source_has_no_way_to_run_what_a_file_brings_along() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in sources()
        for number, line in enumerate(code_of(file), start=1)
        if DANGEROUS.search(line)
    ]
    assert found == []


@pytest.fixture
def configs(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Command lines of a small run of each method."""
    monkeypatch.setattr(dpo_trainer, "CACHE", tmp_path / "cache")
    rows = [
        {"prompt": f"We saw film {i}.", "chosen": " Lovely.", "rejected": " Dull.", "answer": str(i)} for i in range(12)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"""
model: {{path: {tiny_model}}}
run: {{name: run, folder: {tmp_path}, groups_per_step: 4, checkpoint_every: 1}}
sampling: {{max_new_tokens: 4}}
"""
    texts = {
        "dpo": f"{common}data: {{train: [{data}], heldout_groups: 3}}\neval: {{prompts: 2}}\n",
        "grpo": f"{common}data: {{train: [{data}], heldout_prompts: 3}}\nrewards: [{{name: length}}]\nsteps: 2\n"
        "eval: {samples_per_prompt: 2, threshold: 0.5}\n",
    }

    def command(method: str) -> list[str]:
        file = tmp_path / f"{method}.yaml"
        file.write_text(texts[method].replace("name: run", f"name: {method}"))
        return ["--config", str(file)]

    return command


@pytest.mark.parametrize(("method", "main"), [("dpo", train_dpo.main), ("grpo", train_grpo.main)])
def test_a_run_of_a_local_model_needs_no_network_and_leaves_no_pickle_and_no_secret(
    method: str,
    main: Callable[[Sequence[str]], None],
    configs: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a run of a local model opened a connection")

    secret = "hf_thisMustNeverBeWritten"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket.socket, "bind", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    main(configs(method))
    files = [file for file in (tmp_path / method).rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        assert file.suffix in OUTPUTS or (file.name == ".lock" and not content), file
        assert content[:1] != b"\x80" and content[:2] != b"PK", f"{file} looks like a pickle"
        assert secret.encode() not in content, file
    said = capsys.readouterr()
    assert secret not in said.out + said.err


def test_rewards_see_only_the_variables_they_were_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("JUDGE_KEY", "z")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import os, json\n"
        "def tell(rows, completions, note):\n"
        "    open(note, 'w').write(json.dumps(sorted(os.environ)))\n"
        "    return [0.0 for _ in completions]\n"
    )
    reward = RewardSection(name=f"{mine}:tell", options={"note": str(tmp_path / "note")})
    with Scorer([reward], ScoringSection(environment=("JUDGE_KEY",))) as scorer:
        scorer.score([{"prompt": "p"}], [Answer(text="a", token_ids=(1,), finished=True, group=0)])
    seen = set(json.loads((tmp_path / "note").read_text()))
    assert {"PATH", "JUDGE_KEY"} <= seen
    assert not seen & {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}


def test_telemetry_of_the_libraries_is_off() -> None:
    program = "import dpo.train_dpo, dpo.dpo_trainer, huggingface_hub.constants as c; assert c.HF_HUB_DISABLE_TELEMETRY"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_dependency_floors_exclude_known_holes() -> None:
    """torch before 2.10 (CVE-2026-24747) and transformers before 5.3 (CVE-2026-4372) run code from model files."""
    text = (ROOT / "pyproject.toml").read_text()
    floors = dict(re.findall(r'"(torch|transformers) ?>= ?([\d.]+)', text))
    assert tuple(map(int, floors["torch"].split("."))) >= (2, 10)
    assert tuple(map(int, floors["transformers"].split("."))) >= (5, 3)
    assert sys.version_info >= (3, 11)
