"""Bad input of every kind gets one clear error: what, where, the remedy; exit code 2, and nothing is overwritten.

Each case names the parts that its message must hold. The peer answers 6 of 22 such inputs clearly, 9 with a traceback
from deep inside, and trains on 7 as if nothing were wrong.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dpo import dpo_trainer, train_dpo
from dpo import eval as eval_dpo
from dpo.config import DpoConfig
from dpo.dataset_utils import load_preference_groups
from groupwise.config import load_config
from groupwise.data.text import TextEncoder
from groupwise.errors import UserError, exit_with_user_errors
from grpo import eval as eval_grpo
from grpo import train_grpo
from grpo.config import GrpoConfig, PromptDataSection
from grpo.dataset_utils import load_prompts

PAIR = {"prompt": "We saw it.", "chosen": " Lovely.", "rejected": " Dull."}
PAIRS = [{**PAIR, "prompt": f"We saw film {i}."} for i in range(12)]
ASKED = [{"prompt": f"We saw film {i}.", "answer": str(i)} for i in range(12)]
BASE = {"model": {"path": "model"}}
DPO = {
    "data": {"train": ["pairs.jsonl"], "heldout_groups": 3},
    "run": {"name": "run", "folder": "runs"},
    "eval": {"prompts": 2},
    "sampling": {"max_new_tokens": 4},
}
GRPO = {
    "data": {"train": ["asked.jsonl"], "heldout_prompts": 3},
    "rewards": [{"name": "exact_answer"}],
    "run": {"name": "run", "folder": "runs"},
    "sampling": {"max_new_tokens": 4},
    "steps": 1,
}
PROGRAMS: dict[str, Callable[[Sequence[str]], object]] = {
    "dpo": train_dpo.main,
    "grpo": train_grpo.main,
    "eval_dpo": eval_dpo.main,
    "eval_grpo": eval_grpo.main,
}


@dataclass(frozen=True)
class Case:
    """`files` are written beside the configuration (a dict as YAML, a list as JSON lines), then `prepare` is called."""

    program: str
    parts: Sequence[str]
    flags: Sequence[str] = ()
    files: Mapping[str, object] | None = None
    prepare: Callable[[Path], object] | None = None


def dpo(*flags: str, parts: Sequence[str], prepare: Callable[[Path], object] | None = None, **files: object) -> Case:
    return Case("dpo", parts, flags, {name.replace("__", "."): content for name, content in files.items()}, prepare)


def grpo(*flags: str, parts: Sequence[str], prepare: Callable[[Path], object] | None = None, **files: object) -> Case:
    return Case("grpo", parts, flags, {name.replace("__", "."): content for name, content in files.items()}, prepare)


def rows(*bad: object, good: int = 2) -> list[object]:
    return [*PAIRS[:good], *bad]


def ranked(**bad: object) -> list[object]:
    good: dict[str, object] = {"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]}
    return [good, good, {**good, **bad}]


def with_model(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Change a copy of the model that stands in the folder `model`."""
    return lambda folder: change(folder / "model")


def damaged_weights(content: bytes) -> Callable[[Path], object]:
    return with_model(lambda model: (model / "model.safetensors").write_bytes(content))


def only_pickled_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def without_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def file_in_the_way(folder: Path) -> None:
    (folder / "runs").write_text("I was here first")


def foreign_folder(folder: Path) -> None:
    (folder / "runs" / "run").mkdir(parents=True)
    (folder / "runs" / "run" / "thesis.tex").write_text("ten years of work")


def run_of(config: Mapping[str, object] | str) -> Callable[[Path], None]:
    """A run folder with that configuration, as a stopped run leaves it."""

    def make(folder: Path) -> None:
        run = folder / "runs" / "run"
        run.mkdir(parents=True)
        write(run / "config.yaml", config if isinstance(config, str) else {**BASE, **config})

    return make


MODEL = ("--model.path", "model")
CASES: dict[str, Case] = {
    # --- command line
    "key mistyped": dpo("--loss.bta", "0.1", parts=["loss.bta", "did you mean", "loss.beta"]),
    "section mistyped": dpo("--los.beta", "0.1", parts=["los", "did you mean", "loss"]),
    "flag without a value": dpo("--loss.beta", parts=["--loss.beta", "value"]),
    "stray word": dpo("fast", parts=["fast"]),
    "single dash": dpo("-x", "1", parts=["-x"]),
    "configuration missing": Case("dpo", ["nowhere.yaml"], ("--config", "nowhere.yaml")),
    "configuration is a folder": Case("dpo", ["Is a directory"], ("--config", "."), prepare=None),
    # --- YAML
    "bracket left open": dpo(parts=["config.yaml", "not valid YAML"], config__yaml="data:\n  train: [a\nrun: {}\n"),
    "tab as indentation": dpo(parts=["config.yaml:2", "indent with spaces"], config__yaml="data:\n\ttrain: [a]\n"),
    "a list, not keys": dpo(parts=["config.yaml"], config__yaml="- a\n- b\n"),
    "empty file": dpo(parts=["config.yaml", "no keys"], config__yaml=""),
    "key twice": dpo(parts=["config.yaml", "name", "twice"], config__yaml="run:\n  name: a\n  name: b\n"),
    "not UTF-8": dpo(parts=["config.yaml", "UTF-8"], config__yaml=b"run: {name: caf\xe9}\n"),
    "python object": dpo(parts=["config.yaml"], config__yaml="run: !!python/object/apply:os.system ['true']\n"),
    "unknown key in a file": dpo(
        parts=["config.yaml", "run.groups_per_stp", "did you mean", "groups_per_step"],
        config__yaml={**DPO, "run": {"name": "run", "groups_per_stp": 4}},
    ),
    "required key missing": dpo(parts=["data.train", "required"], config__yaml={**DPO, "data": {}}),
    "several problems at once": dpo(
        "--loss.beta", "-1", "--lora.rank", "0", "--optimizer.name", "adan",
        parts=["loss.beta", "lora.rank", "optimizer.name"],
    ),
    # --- values
    "text for a number": dpo("--loss.beta", "high", parts=["loss.beta", "high"]),
    "negative beta": dpo("--loss.beta", "-0.1", parts=["loss.beta", "greater than 0", "-0.1"]),
    "NaN": dpo("--loss.beta", ".nan", parts=["loss.beta", "finite"]),
    "infinity": dpo("--optimizer.learning_rate", ".inf", parts=["optimizer.learning_rate", "finite"]),
    "true for a number": dpo("--lora.rank", "true", parts=["lora.rank", "whole number"]),
    "half a rank": dpo("--lora.rank", "1.5", parts=["lora.rank", "whole number"]),
    "null where a value is needed": dpo("--run.seed", "null", parts=["run.seed"]),
    "choice mistyped": dpo("--optimizer.name", "adam", parts=["optimizer.name", "adamw", "rmsprop"]),
    "settings that exclude each other": dpo(
        "--optimizer.name", "rmsprop", "--optimizer.weight_decay", "0.1", parts=["weight_decay", "adamw"]
    ),
    "no data at all": dpo("--data.train", "[]", parts=["data.train"]),
    "empty stop text": dpo("--sampling.stop", "['']", parts=["sampling.stop"]),
    "foreign code, not pinned": dpo(
        "--model.path", "owner/name", "--model.trust_remote_code", "true", parts=["trust_remote_code", "revision"]
    ),
    "group of one": grpo("--rollout.completions_per_prompt", "1", parts=["rollout.completions_per_prompt", "2"]),
    "temperature 0": grpo("--sampling.temperature", "0", parts=["sampling.temperature", "greater than 0"]),
    "top_p above 1": grpo("--sampling.top_p", "1.5", parts=["sampling.top_p", "1"]),
    "template without the prompt": grpo("--data.template", "Answer", parts=["data", "{prompt}"]),
    "system message without chat": grpo("--data.system", "Be kind.", parts=["system", "chat"]),
    "moving reference without KL": grpo(
        "--loss.reference", "copy", "--loss.kl_coefficient", "0", parts=["loss", "reference", "kl_coefficient"]
    ),
    "more tokens than positions": grpo("--sampling.max_new_tokens", "200", parts=["sampling.max_new_tokens", "128"]),
    "secret in the configuration": grpo(
        parts=["rewards", "api_key", "scoring.environment"],
        config__yaml={**GRPO, "rewards": [{"name": "exact_answer", "options": {"api_key": "sk-1234"}}]},
    ),
    # --- data files
    "file missing": dpo("--data.train", "[pairz.jsonl]", parts=["pairz.jsonl"]),
    "held-out file missing": dpo("--data.heldout", "[gone.jsonl]", parts=["gone.jsonl"]),
    "folder for a file": dpo("--data.train", "[model]", parts=["model"]),
    "unknown format": dpo("--data.train", "[pairs.txt]", parts=["pairs.txt", ".jsonl"], pairs__txt="a\n"),
    "not JSON": dpo(parts=["pairs.jsonl:2"], pairs__jsonl=json.dumps(PAIR) + "\n{prompt: a}\n"),
    "half a line at the end": dpo(parts=["pairs.jsonl:2"], pairs__jsonl=json.dumps(PAIR) + '\n{"prompt": "We'),
    "a row is a list": dpo(parts=["pairs.jsonl:3"], pairs__jsonl=rows(["a", "b"])),
    "row without rejected": dpo(
        parts=["pairs.jsonl:3", "rejected"], pairs__jsonl=rows({"prompt": "a", "chosen": "b"})
    ),
    "null in a row": dpo(parts=["pairs.jsonl:3", "rejected"], pairs__jsonl=rows({**PAIR, "rejected": None})),
    "number for a text": dpo(parts=["pairs.jsonl:3", "chosen"], pairs__jsonl=rows({**PAIR, "chosen": 5})),
    "empty completion": dpo(parts=["pairs.jsonl:3", "chosen", "empty"], pairs__jsonl=rows({**PAIR, "chosen": ""})),
    "empty prompt": dpo(parts=["pairs.jsonl:3", "prompt", "empty"], pairs__jsonl=rows({**PAIR, "prompt": ""})),
    "NaN in a row": dpo(
        parts=["pairs.jsonl:1"],
        pairs__jsonl='{"prompt": "a", "responses": ["b", "c"], "scores": [1.0, NaN]}\n',
    ),
    "fewer scores than responses": dpo(
        parts=["pairs.jsonl:3", "scores"], pairs__jsonl=ranked(scores=[1])
    ),
    "one response": dpo(
        parts=["pairs.jsonl:3", "response"], pairs__jsonl=ranked(responses=["b"], scores=[1])
    ),
    "text for a score": dpo(
        parts=["pairs.jsonl:3", "scores"],
        pairs__jsonl=ranked(scores=["good", "bad"]),
    ),
    "all pairs equal": dpo(
        parts=["pairs.jsonl", "identical"], pairs__jsonl=[{**PAIR, "rejected": PAIR["chosen"]}] * 3
    ),
    "no rows": dpo(parts=["pairs.jsonl"], pairs__jsonl=""),
    "only blank lines": dpo(parts=["pairs.jsonl"], pairs__jsonl="\n\n\n"),
    "bytes that are no text": dpo(parts=["pairs.jsonl", "UTF-8"], pairs__jsonl=b'{"prompt": "caf\xe9"}\n'),
    "no Parquet": dpo("--data.train", "[x.parquet]", parts=["x.parquet"], x__parquet="I am no Parquet file"),
    "CSV without columns": dpo("--data.train", "[x.csv]", parts=["x.csv", "rejected"], x__csv="prompt,chosen\na,b\n"),
    "JSON object, not rows": dpo("--data.train", "[x.json]", parts=["x.json"], x__json='{"prompt": "a"}'),
    "twenty problems and more": dpo(
        parts=["pairs.jsonl:1:", "pairs.jsonl:20:", "and 10 more"], pairs__jsonl=[{**PAIR, "rejected": None}] * 30
    ),
    "prompts all too long": dpo("--data.max_prompt_tokens", "1", parts=["max_prompt_tokens"]),
    "column that is not there": grpo("--data.columns", "{prompt: question}", parts=["asked.jsonl", "question"]),
    "split that is not there": grpo(
        "--data.split", "trian",
        parts=["asked.jsonl", "split"], asked__jsonl=[{**row, "split": "train"} for row in ASKED],
    ),
    "chat without a template": grpo("--data.chat", "true", parts=["chat template", "model"]),
    "message without a role": dpo(
        parts=["pairs.jsonl:3", "role"], pairs__jsonl=rows({**PAIR, "prompt": [{"content": "hello"}]})
    ),
    "transcripts that share nothing": dpo(
        parts=["pairs.jsonl:1"], pairs__jsonl=[{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}]
    ),
    "hub data set without a network": dpo("--data.train", "[owner/name]", parts=["owner/name"]),
    # --- models
    "model missing": dpo("--model.path", "model/nowhere", parts=["model.path", "model/nowhere", "download_model"]),
    "folder without a model": dpo("--model.path", "empty", parts=["model.path", "config.json"],
                                  prepare=lambda folder: (folder / "empty").mkdir()),
    "config.json is no JSON": dpo(
        parts=["model.path", "config.json"], prepare=with_model(lambda m: (m / "config.json").write_text("{"))
    ),
    "unknown architecture": dpo(
        parts=["model.path", "telepathy"],
        prepare=with_model(lambda m: (m / "config.json").write_text('{"model_type": "telepathy"}')),
    ),
    "pickled weights": dpo(parts=["model.path", "safetensors"], prepare=with_model(only_pickled_weights)),
    "weights cut short": dpo(parts=["model.path"], prepare=damaged_weights(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")),
    "header of an exabyte": dpo(parts=["model.path"], prepare=damaged_weights(b"\xff" * 7 + b"\x0f{}")),
    "tokenizer missing": dpo(parts=["model.path"], prepare=with_model(without_tokenizer)),
    "layer that is not there": dpo("--lora.target_modules", "[q_proj]", parts=["lora.target_modules", "c_attn"]),
    # --- run folders
    "folder of somebody else": dpo(parts=["runs/run", "--run.name"], prepare=foreign_folder),
    "file in the way": dpo(parts=["runs"], prepare=file_in_the_way),
    "another configuration": dpo(
        parts=["runs/run", "another configuration", "loss.beta", "--run.name"],
        prepare=run_of({**DPO, "loss": {"beta": 0.7}}),
    ),
    "configuration of the other method": dpo(parts=["runs/run/config.yaml"], prepare=run_of(GRPO)),
    "configuration of the run is damaged": dpo(parts=["runs/run/config.yaml"], prepare=run_of("model: [")),
    "must not be continued": dpo("--run.resume", "false", parts=["run.resume", "--run.name"], prepare=run_of(DPO)),
    "evaluation of nothing": Case("eval_dpo", ["nowhere", "no finished run"], ("nowhere",)),
    "evaluation of an unfinished run": Case("eval_grpo", ["summary.json", "no finished run"], ("runs/run",),
                                            prepare=run_of(GRPO)),
    # --- rewards
    "no rewards": grpo(parts=["rewards"], config__yaml={**GRPO, "rewards": []}),
    "reward mistyped": grpo(
        parts=["rewards[0]", "exact_anwser", "did you mean exact_answer"],
        config__yaml={**GRPO, "rewards": [{"name": "exact_anwser"}]},
    ),
    "reward file missing": grpo(
        parts=["rewards[0]", "mine.py"], config__yaml={**GRPO, "rewards": [{"name": "mine.py:score"}]}
    ),
    "function missing": grpo(
        parts=["rewards[0]", "mine.py", "scores", "score"],
        config__yaml={**GRPO, "rewards": [{"name": "mine.py:scores"}]},
        mine__py="def score(rows, completions):\n    return [0.0 for _ in completions]\n",
    ),
    "reward file with a slip": grpo(
        parts=["rewards[0]", "mine.py", "SyntaxError"],
        config__yaml={**GRPO, "rewards": [{"name": "mine.py:score"}]},
        mine__py="def score(rows completions):\n",
    ),
    "reward is no function": grpo(
        parts=["rewards[0]", "mine.py", "score"],
        config__yaml={**GRPO, "rewards": [{"name": "mine.py:score"}]},
        mine__py="score = 5\n",
    ),
    "option mistyped": grpo(
        parts=["rewards[0]", "markr", "marker"],
        config__yaml={**GRPO, "rewards": [{"name": "exact_answer", "options": {"markr": "#"}}]},
    ),
    "option of the wrong kind": grpo(
        parts=["rewards[0]", "column"],
        config__yaml={**GRPO, "rewards": [{"name": "exact_answer", "options": {"column": 5}}]},
    ),
    "pattern that is none": grpo(
        parts=["rewards[0]", "pattern"],
        config__yaml={**GRPO, "rewards": [{"name": "regex_format", "options": {"pattern": "("}}]},
    ),
    "column of the answer missing": grpo(
        parts=["asked.jsonl:1", "answer"], asked__jsonl=[{"prompt": f"We saw film {i}."} for i in range(12)]
    ),
    "answer empty": grpo(parts=["asked.jsonl:4", "answer"], asked__jsonl=[*ASKED[:3], {**ASKED[3], "answer": ""}]),
    "measure of success mistyped": grpo("--eval.correct", "exact_answr", parts=["eval.correct", "exact_answer"]),
}  # fmt: skip


def write(file: Path, content: object) -> None:
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, list):
        file.write_text("".join(json.dumps(row) + "\n" for row in content))  # pyright: ignore[reportUnknownVariableType]
    elif isinstance(content, dict):
        file.write_text(yaml.safe_dump(content))
    else:
        file.write_text(str(content))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.parent.name != "__pycache__"
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_one_clear_error_and_nothing_is_written(
    name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dpo_trainer, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(tiny_model, tmp_path / "model")
    write(tmp_path / "pairs.jsonl", PAIRS)
    write(tmp_path / "asked.jsonl", ASKED)
    write(tmp_path / "config.yaml", BASE | (GRPO if case.program == "grpo" else DPO))
    for file, content in (case.files or {}).items():
        write(tmp_path / file, BASE | content if file == "config.yaml" and isinstance(content, dict) else content)
    if case.prepare is not None:
        case.prepare(tmp_path)
    flags = list(case.flags)
    if case.program in ("dpo", "grpo") and "--config" not in flags:
        flags = ["--config", "config.yaml", *flags]
    before = everything(tmp_path)
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        PROGRAMS[case.program](flags)
    message = capsys.readouterr().err
    assert left.value.code == 2, message
    assert message.startswith("error: ")
    for part in case.parts:
        assert part in message, f"{part!r} is not in:\n{message}"
    assert everything(tmp_path) == before


# --- found by trying anything -----------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "user", "name"]), inner, max_size=3)
    ),
    max_leaves=5,
)
ROW = st.dictionaries(
    st.sampled_from(["prompt", "chosen", "rejected", "responses", "scores", "answer"]), ANYTHING, max_size=5
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.lists(ROW, max_size=4))
def test_whatever_rows_hold_no_traceback_reaches_a_user(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory, rows: list[object]
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    write(file, rows)
    encoder = TextEncoder(tokenizer, max_prompt_tokens=20, max_completion_tokens=20)
    with contextlib.suppress(UserError):
        load_preference_groups([str(file)], encoder)
    with contextlib.suppress(UserError):
        load_prompts([str(file)], encoder, PromptDataSection(train=(str(file),)), split=None)


KEYS = st.sampled_from(
    [
        "model",
        "lora",
        "data",
        "loss",
        "optimizer",
        "run",
        "rewards",
        "sampling",
        "train",
        "name",
        "beta",
        "options",
        "rank",
    ]
)


@FUZZ
@given(st.dictionaries(KEYS, ANYTHING | st.dictionaries(KEYS, ANYTHING, max_size=3), max_size=4))
def test_whatever_a_configuration_holds_no_traceback_reaches_a_user(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    write(file, content)
    for schema in (DpoConfig, GrpoConfig):
        with contextlib.suppress(UserError):
            load_config(schema, file)


def test_a_folder_without_permission_is_a_clear_error(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", PAIRS)
    write(tmp_path / "config.yaml", {**DPO, "model": {"path": str(tiny_model)}})
    (tmp_path / "runs").mkdir(mode=0o500)
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        train_dpo.main(["--config", "config.yaml"])
    assert left.value.code == 2
    assert "runs" in capsys.readouterr().err


def test_the_readme_states_the_number_of_cases() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    assert f"{len(CASES)} kinds of bad input" in readme
