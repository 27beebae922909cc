"""A program's own switches beside the keys of its configuration, and what it prints of them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from groupwise.config import CommandLine, read_command_line
from groupwise.errors import UserError
from tests.config.example import KEYS, Config, LossSection, M, ModelSection, load


def command_line(argv: Sequence[str], default_path: Path) -> CommandLine[Config]:
    return read_command_line(
        Config,
        argv,
        default_path=default_path,
        description="Train with preferences.",
        epilog="Example: train --loss.beta 0.2",
        flags={"check": "Load everything [twice] and stop."},
    )


def test_the_default_file_another_file_and_the_programs_own_flags(tmp_path: Path):
    default, other = tmp_path / "default.yaml", tmp_path / "other.yaml"
    default.write_text(M)
    other.write_text("model: {path: o}\n")
    plain = command_line([], default)
    assert (plain.config.model.path, plain.path, plain.flags) == ("m", default, frozenset())
    chosen = command_line(["--check", "--config", str(other), "--seed", "3"], default)
    assert (chosen.config.model.path, chosen.config.seed) == ("o", 3)
    assert (chosen.path, chosen.flags) == (other, {"check"})


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--chek"], "--chek: unknown key; did you mean --check?"),
        (["--confg", "x"], "--confg: unknown key; did you mean --config?"),
        (["--check=true"], "--check: takes no value"),
        (["--check", "true"], "true: unexpected argument; a value follows its flag, as in --section.key VALUE"),
        (["--config"], "--config: needs the path of a YAML file"),
        (["--config="], "--config: needs the path of a YAML file"),
    ],
)
def test_bad_command_lines(tmp_path: Path, argv: Sequence[str], problem: str):
    (tmp_path / "my.yaml").write_text(M)
    with pytest.raises(UserError) as caught:
        command_line(argv, tmp_path / "my.yaml")
    assert str(caught.value) == problem


def test_print_config_prints_what_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "my.yaml").write_text(M)
    with pytest.raises(SystemExit) as ended:
        command_line(["--print-config", "--loss.beta", "0.25"], tmp_path / "my.yaml")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert load(tmp_path, printed) == Config(model=ModelSection(path="m"), loss=LossSection(beta=0.25))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_shows_every_key_within_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        command_line(["--help", "--nonsense"], Path("there/is/no/such/file.yaml"))
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    flags = {word for word in text.split() if word.startswith("--")}
    own = {"--config", "--print-config", "--help", "--check"}
    assert flags >= {f"--{key}" for key in KEYS} | own | {"--schedule.floor", "--seed", "--note"}
    assert "[at its peak]" in text and "[twice]" in text  # square brackets are text, not markup
    words = " ".join(text.split())
    assert "--loss.beta 1/nat; pull to the reference" in words and "float > 0, default 0.1" in words
    assert "float32 | bfloat16, default float32" in words
    assert "text, required" in words
    assert "--lora null switches it off" in words
    assert "Example: train --loss.beta 0.2" in words


def test_help_needs_neither_torch_nor_transformers():
    # Importing them takes seconds, and a user who asks for help waits for it.
    code = "import sys, groupwise.config; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
