"""`--check` finds what is wrong before any time is spent, says it in one place, and writes nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from dpo import train_dpo
from dpo.check import check as check_dpo
from dpo.config import DpoConfig
from groupwise.config import read_command_line
from groupwise.errors import exit_with_user_errors
from groupwise.preflight import fit
from grpo import train_grpo

DPO = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA/pairs.jsonl], heldout: [DATA/heldout.jsonl], max_completion_tokens: 60}
optimizer: {warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 4, tokens_per_forward: 200}
eval: {every: 2, prompts: 4}
sampling: {max_new_tokens: 8}
"""
GRPO = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA/prompts.jsonl], heldout_prompts: 4}
rewards: [{name: "DATA/rewards.py:even"}]
sampling: {max_new_tokens: 6}
rollout: {completions_per_prompt: 4}
optimizer: {learning_rate: 2.0e-2, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 4, tokens_per_forward: 200}
steps: 4
eval: {every: 2, samples_per_prompt: 2}
"""
REWARDS = """
def even(rows, completions):
    return [sum(i % 2 == 0 for i in c.token_ids) / len(c.token_ids) for c in completions]

def odd(rows, completions):
    return [1 - value for value in even(rows, completions)]

def mostly_odd(rows, completions):
    return [2 * value for value in odd(rows, completions)]

def constant(rows, completions):
    return [1.0 for _ in completions]

def broken(rows, completions):
    raise ValueError("no idea")

def not_a_number(rows, completions):
    return [float("nan") for _ in completions]

def sometimes(rows, completions):
    return [None if c.token_ids[0] % 2 else 1.0 * c.token_ids[0] for c in completions]

def length(rows, completions):
    return [float(len(c.token_ids)) for c in completions]

def shortest(rows, completions):
    return [-float(len(c.token_ids)) for c in completions]

def slow(rows, completions):
    import time
    time.sleep(0.5)
    return even(rows, completions)
"""


def to_lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pair(number: int, **other: object) -> dict[str, object]:
    return {
        "prompt": f"We saw film number {number}.",
        "chosen": f" A lovely film, the {number % 7} actors are warm.",
        "rejected": f" A dull film, the {number % 5} actors are loud and tired.",
        **other,
    }


@dataclass
class Site:
    """Files and command line of a run that has nothing wrong with it, for planting something."""

    folder: Path
    model: Path
    flags: list[str] = field(default_factory=list[str])

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def pairs(self, *rows: dict[str, object]) -> None:
        (self.data / "pairs.jsonl").write_text(to_lines([*map(pair, range(12)), *rows]))

    def own_model(self) -> Path:
        """A copy of the model that may be damaged."""
        self.model = Path(shutil.copytree(self.model, self.folder / "model"))
        return self.model

    def json(self, name: str, **changes: object) -> None:
        """Change keys of one of the model's JSON files."""
        file = self.own_model() / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    def command(self, text: str) -> list[str]:
        config = self.folder / "config.yaml"
        text = text.replace("MODEL", str(self.model)).replace("DATA", str(self.data))
        config.write_text(text.replace("RUNS", str(self.folder / "runs")))
        return ["--config", str(config), "--check", *self.flags]


@pytest.fixture
def site(tmp_path: Path, tiny_model: Path) -> Site:
    place = Site(tmp_path, tiny_model)
    place.data.mkdir()
    place.pairs()
    (place.data / "heldout.jsonl").write_text(to_lines([pair(number) for number in range(100, 106)]))
    prompts = [{"prompt": f"We saw film number {i}.", "n": i} for i in range(16)]
    (place.data / "prompts.jsonl").write_text(to_lines([dict(row) for row in prompts]))
    (place.data / "rewards.py").write_text(REWARDS)
    return place


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and "__pycache__" not in str(file)
    }


def run_check(
    main: Callable[[list[str]], None], command: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and everything that was said, on one line."""
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        main(command)
    out, err = capsys.readouterr()
    code = left.value.code
    assert isinstance(code, int)
    return code, " ".join((out + err).split())


def finds(
    site: Site, main: Callable[[list[str]], None], text: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = site.command(text)
    before = everything(site.folder)
    code, said = run_check(main, command, capsys)
    for part in parts:
        assert part in said, said
    assert code == (2 if parts[0].startswith(("error", "config")) else 0), said
    assert "Traceback" not in said
    assert everything(site.folder) == before


# --- nothing wrong


def test_a_sound_dpo_run_is_all_well(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(site.folder)
    command = site.command(DPO)
    code, said = run_check(train_dpo.main, command, capsys)
    assert code == 0, said
    assert "error" not in said
    assert "[[ A lovely film, the 0 actors are warm.<|endoftext|>]]" in said, "what is trained is marked"
    assert "loss 0.6931" in said
    assert "no training was started" in said
    (site.folder / "config.yaml").unlink()
    assert everything(site.folder) == before


def test_a_sound_grpo_run_is_all_well(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.flags += ["--sampling.max_new_tokens", "30"]
    before = everything(site.folder)
    code, said = run_check(train_grpo.main, site.command(GRPO), capsys)
    assert code == 0, said
    assert "policy and sampler agree" in said
    (site.folder / "config.yaml").unlink()
    assert everything(site.folder) == before


# --- planted problems: how to plant one, and what must be said; an error ends with exit code 2, a warning with 0


def unreadable_model(site: Site) -> None:
    file = site.own_model() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def weight_without_value(site: Site) -> None:
    file = site.own_model() / "model.safetensors"
    weights = load_file(file)
    weights["transformer.h.0.mlp.c_fc.bias"][3] = float("inf")
    save_file(weights, file, {"format": "pt"})


def no_data(site: Site) -> None:
    (site.data / "pairs.jsonl").unlink()


def no_data_and_no_model(site: Site) -> None:
    no_data(site)
    unreadable_model(site)


def bad_rows(site: Site) -> None:
    site.pairs({"prompt": "a", "chosen": "b"}, pair(50, chosen=7))


def rows_of_the_heldout_part(site: Site) -> None:
    site.pairs(pair(101), pair(102))


def duplicates(site: Site) -> None:
    site.pairs(pair(3), pair(4))


def contradictions(site: Site) -> None:
    turned = pair(3)
    site.pairs({**turned, "chosen": turned["rejected"], "rejected": turned["chosen"]})


def longer_wins(site: Site) -> None:
    rows = [pair(i, chosen=" A warm film." * 2, rejected=" Dull." + str(i)) for i in range(60)]
    (site.data / "pairs.jsonl").write_text(to_lines(rows))


def cut_completions(site: Site) -> None:
    site.flags += ["--data.max_completion_tokens", "9", "--data.too_long", "cut_completion"]


def other_end(site: Site) -> None:
    site.json("config.json", eos_token_id=7)


def template(text: str) -> Callable[[Site], None]:
    """Chat data, and a chat template for it."""

    def plant(site: Site) -> None:
        site.json("tokenizer_config.json", chat_template=text)
        rows: list[dict[str, object]] = [
            {
                "prompt": [{"role": "user", "content": f"Film {i}?"}],
                "chosen": [{"role": "assistant", "content": "Warm."}],
                "rejected": [{"role": "assistant", "content": "Dull."}],
            }
            for i in range(12)
        ]
        (site.data / "pairs.jsonl").write_text(to_lines(rows))

    return plant


TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}END\n{% endfor %}"
BEGINS_TWICE = template("{{ bos_token }}{{ bos_token }}" + TURNS.replace("END", "{{ eos_token }}"))


def longer_than_positions(site: Site) -> None:
    site.flags += ["--sampling.max_new_tokens", "120"]


def measure_that_is_not_there(site: Site) -> None:
    site.flags += ["--eval.score", f"{site.data}/rewards.py:missing"]


def other_run_in_the_folder(site: Site) -> None:
    folder = site.folder / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")


def file_in_the_way(site: Site) -> None:
    (site.folder / "runs").write_text("")


def half_precision(site: Site) -> None:
    site.flags += ["--model.dtype", "bfloat16", "--lora", "null"]


def missing_tracker(site: Site) -> None:
    site.flags += ["--run.trackers", "[wandb]"]


def captured_steps(site: Site) -> None:
    site.flags += ["--sampling.captured", "true"]


DPO_PROBLEMS = {
    "weights cut short": (unreadable_model, ("error", "model.path", "nothing more was checked of the data")),
    "a weight is infinite": (weight_without_value, ("error", "1 weights hold NaN", "transformer.h.0.mlp.c_fc.bias")),
    "no data": (no_data, ("error", "pairs.jsonl", "no such file")),
    "no data and no model": (no_data_and_no_model, ("error", "model.path", "pairs.jsonl", "2 errors to mend")),
    "bad rows, all at once": (bad_rows, ("error", "pairs.jsonl:13", "pairs.jsonl:14")),
    "held-out prompts are trained on": (
        rows_of_the_heldout_part,
        ("warning", "2 of 6 held-out prompts are trained on"),
    ),
    "duplicates": (duplicates, ("warning", "2 groups are exact duplicates")),
    "contradictions": (contradictions, ("warning", "stand in the data in both orders")),
    "longer wins": (longer_wins, ("warning", "the longer completion mostly wins")),
    "texts begin twice": (BEGINS_TWICE, ("error", "12 prompts begin with '<|endoftext|>' twice", "remove it")),
    "completions are cut": (cut_completions, ("warning", "have no end-of-sequence token", "learns not to stop")),
    "model ends otherwise": (other_end, ("warning", "the model's configuration ends texts with", "eos_token")),
    "template without an end": (
        template(TURNS.replace("END", "")),
        ("warning", "writes no end-of-sequence token behind"),
    ),
    "longer than positions": (longer_than_positions, ("error", "128", "positions")),
    "score of samples is not there": (measure_that_is_not_there, ("error", "eval.score", "missing")),
    "folder of something else": (other_run_in_the_folder, ("error", "holds no config.yaml")),
    "a file where the folder would be": (file_in_the_way, ("error", "is a file")),
    "steps captured on a CPU": (captured_steps, ("error", "sampling.captured", "set it to false")),
    "half precision alone": (half_precision, ("warning", "bfloat16")),
    "tracker that is not installed": (missing_tracker, ("error", "wandb is not installed", "pip install wandb")),
}


@pytest.mark.parametrize("name", DPO_PROBLEMS)
def test_a_problem_of_a_dpo_run_is_found(name: str, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    plant, parts = DPO_PROBLEMS[name]
    plant(site)
    finds(site, train_dpo.main, DPO, parts, capsys)


def rewards(*names: str, **other: object) -> Callable[[Site], None]:
    def plant(site: Site) -> None:
        listed = [{"name": f"{site.data}/rewards.py:{name}" if ":" not in name else name[1:]} for name in names]
        site.flags += ["--rewards", json.dumps(listed)]
        for key, value in other.items():
            site.flags += [f"--{key.replace('__', '.')}", str(value)]

    return plant


def another_tokenizer(site: Site) -> None:
    place = site.data / "other-model"
    shutil.copytree(site.model, place)
    vocabulary = json.loads((place / "tokenizer.json").read_text())
    ids = vocabulary["model"]["vocab"]
    first, second = list(ids)[-2:]
    ids[first], ids[second] = ids[second], ids[first]
    (place / "tokenizer.json").write_text(json.dumps(vocabulary))
    site.flags += ["--reward_model", json.dumps({"path": str(place), "first_prompts": 4, "every": 2})]


GRPO_PROBLEMS = {
    "reward that is not there": (rewards(":exact_anser"), ("error", "exact_anser", "exact_answer")),
    "column that a reward reads is missing": (rewards(":exact_answer"), ("error", "prompts.jsonl:1", "answer")),
    "reward that raises": (rewards("broken"), ("error", "no idea", "gives none of 32 answers a score")),
    "reward of NaN": (rewards("not_a_number"), ("error", "not_a_number")),
    "reward without some answers": (rewards("sometimes"), ("warning", "has no score for")),
    "reward that is always the same": (rewards("constant"), ("error", "0 of 32 groups", "nothing would be learned")),
    "reward that is the length": (
        rewards("length", sampling__max_new_tokens=30),
        ("warning", "the reward is nearly the length", "can be gamed by repetition of one word"),
    ),
    "reward for the empty answer": (
        rewards("shortest", sampling__max_new_tokens=30),
        ("warning", "this reward can be gamed by the empty answer"),
    ),
    "rewards against each other": (rewards("even", "mostly_odd"), ("warning", "they pull against each other")),
    "rewards that say the same": (rewards("length", "length"), ("warning", "they say the same")),
    "slow reward": (rewards("slow", scoring__time_limit=2), ("warning", "scoring takes")),
    "answers are cut": (rewards("even"), ("warning", "answers are cut at sampling.max_new_tokens")),
    "measure that no reward is": (rewards("even", eval__correct="right"), ("error", "eval.correct", "right")),
    "reward model that reads other ids": (another_tokenizer, ("error", "reward_model.path", "other ids")),
    "no room for answers": (rewards("even", sampling__max_new_tokens=127), ("error", "positions")),
    "prompts are too long": (rewards("even", data__max_prompt_tokens=5), ("error", "max_prompt_tokens")),
    "steps captured on a CPU": (rewards("even", sampling__captured="true"), ("error", "captured", "set it to false")),
}


@pytest.mark.parametrize("name", GRPO_PROBLEMS)
def test_a_problem_of_a_grpo_run_is_found(name: str, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    plant, parts = GRPO_PROBLEMS[name]
    plant(site)
    finds(site, train_grpo.main, GRPO, parts, capsys)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_without_room_is_found(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5, 5))
    finds(site, train_dpo.main, DPO, ("error", "are free and this run's checkpoints take", "--run.folder"), capsys)


def test_memory_that_does_not_fit_gets_a_proposal_that_does(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest micro-batch is too much, a group alone is not."""
    monkeypatch.setattr(fit, "loaded_bytes", lambda *args: 100_000_000)
    site.flags += ["--run.tokens_per_forward", "4000", "--run.groups_per_step", "12"]
    config = read_command_line(
        DpoConfig, site.command(DPO), default_path=train_dpo.DEFAULT, description="", flags={"check": ""}
    ).config
    enough = 10**12
    assert check_dpo(config, console=Console(width=4000), memory=enough) == 0
    peak = float(capsys.readouterr().out.split(" MB at the peak")[0].rsplit("memory: ", 1)[1])
    there = int(peak * 1e6) - 200_000
    assert check_dpo(config, console=Console(width=4000), memory=there) == 2
    said = capsys.readouterr().out
    proposal = int(said.split("set run.tokens_per_forward to ")[1].split(",")[0])
    assert 64 <= proposal < 4000
    smaller = config.model_copy(update={"run": config.run.model_copy(update={"tokens_per_forward": proposal})})
    assert check_dpo(smaller, console=Console(width=4000), memory=there) == 0
