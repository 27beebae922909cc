"""`python scripts/chat.py`: from a pipe, without the training data, for runs of either method."""

import io
import json
import sys
from pathlib import Path

import pytest

from dpo.config import DpoConfig
from groupwise.config import load_matching_config, to_yaml
from groupwise.errors import UserError, exit_with_user_errors, printable
from grpo.config import GrpoConfig
from scripts import chat


def piped(run: Path, text: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    chat.main([str(run), *flags])


def test_a_pipe_receives_the_answer_alone(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads((finished_run / "samples.jsonl").read_text().splitlines()[0])
    piped(finished_run, first["prompt"] + "\n", monkeypatch)
    out, err = capsys.readouterr()
    assert out == printable(first["after"]["sampled"][0]["text"]) + "\n"
    assert "the model continues your text" in err


def test_a_pipe_with_a_mistake_ends_with_code_2(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"), exit_with_user_errors():
        piped(finished_run, "/bsae\n" + "a" * 500 + "\nWe saw it.\n", monkeypatch)
    out, err = capsys.readouterr()
    assert "did you mean /base" in err and "128 positions" in err and "2 lines of the input were refused" in err
    assert "Traceback" not in err and out


def test_chat_form_needs_a_template(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        piped(finished_run, "hi\n", monkeypatch, "--prompts", "chat")


def test_a_folder_that_is_no_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no finished run"):
        chat.main([str(tmp_path)])


def test_the_method_is_read_off_the_configuration(tmp_path: Path) -> None:
    schemas = (DpoConfig, GrpoConfig)
    for schema, name in ((DpoConfig, "dpo"), (GrpoConfig, "grpo")):
        default = Path(__file__).parents[2] / "configs" / f"{name}_config.yaml"
        resolved = tmp_path / f"{name}.yaml"
        resolved.write_text(to_yaml(load_matching_config(schemas, default)))
        for file in (default, resolved):
            assert type(load_matching_config(schemas, file)) is schema
    (tmp_path / "bad.yaml").write_text("rewards: [\n")
    with pytest.raises(UserError, match="bad.yaml"):
        load_matching_config(schemas, tmp_path / "bad.yaml")
