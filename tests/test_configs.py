"""Every configuration file that is shipped: it loads, explains each key, refuses a slip, and tells the truth."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file  # pyright: ignore[reportMissingTypeStubs]

from dpo.config import DpoConfig
from groupwise.config import Section, load_config, to_yaml
from groupwise.errors import UserError
from grpo.config import GrpoConfig

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = sorted((ROOT / "configs" / "launch").glob("*.yaml"))  # Accelerate's own files
CONFIGS = sorted(set((ROOT / "configs").rglob("*.y*ml")) - set(LAUNCH))
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
# The word that a file's name begins with -> what it must satisfy.
SCHEMAS: dict[str, type[Section]] = {"dpo": DpoConfig, "grpo": GrpoConfig}

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
each_dpo_recipe = pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem.startswith("dpo_")], ids=lambda path: path.stem
)
each_grpo_recipe = pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem.startswith("grpo_")], ids=lambda path: path.stem
)


def schema_of(path: Path) -> type[Section]:
    return SCHEMAS[path.stem.partition("_")[0]]


def load_dpo(path: Path) -> DpoConfig:
    return load_config(DpoConfig, path)


def keys(text: str) -> Iterator[tuple[str, yaml.ScalarNode, yaml.Node]]:
    """Every key of a configuration with its dotted name, its own node and its value's."""

    def below(node: yaml.Node, prefix: str) -> Iterator[tuple[str, yaml.ScalarNode, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield f"{prefix}{key.value}", key, value
                yield from below(value, f"{prefix}{key.value}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None, "an empty file"
    yield from below(root, "")


def uncommented(text: str) -> list[str]:
    """Keys that hold a value (sections do not) and have a comment neither behind it nor in the line above."""
    lines = text.splitlines()
    found: list[str] = []
    for dotted, key, value in keys(text):
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            continue
        behind = lines[value.end_mark.line][value.end_mark.column :]
        above = lines[key.start_mark.line - 1] if key.start_mark.line else ""
        if not re.match(r"\s+#\s*\w", behind) and not re.match(r"\s*#\s*\w", above):
            found.append(dotted)
    return found


def with_slip(text: str, key: yaml.ScalarNode) -> str:
    """The text with the last letter of one key typed twice."""
    end: int = key.end_mark.index
    return text[:end] + text[end - 1] + text[end:]


def test_there_are_files_to_check() -> None:
    assert {"dpo_config", "dpo_hh_dialogue", "dpo_ultrafeedback_8b"} <= {path.stem for path in CONFIGS}


@each_config
def test_the_file_loads_with_the_schema_its_name_announces(path: Path) -> None:
    assert isinstance(load_config(schema_of(path), path), schema_of(path))


@each_config
def test_every_key_is_explained(path: Path) -> None:
    assert uncommented(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("a: 1  # unit\n", []),
        ("# unit\na: 1\n", []),
        ("a: 1\n", ["a"]),
        ("a: 1  #\n", ["a"]),
        ("a: 'x # y'\n", ["a"]),
        ("s:\n  a: 1  # unit\n  b: [1, 2]\n", ["s.b"]),
        ("s:\n  a: 1\n", ["s.a"]),
        ("s: {a: 1}\n", ["s", "s.a"]),
    ],
)
def test_a_key_without_explanation_is_noticed(text: str, missing: list[str]) -> None:
    assert uncommented(text) == missing


@each_config
def test_a_slip_in_any_key_is_refused_and_the_right_name_told(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    wrong = tmp_path / path.name
    for dotted, key, _ in keys(text):
        if re.search(r"\.(columns|options)\.", dotted):
            continue  # names of the user's data and of a reward's options: the schema cannot know them
        wrong.write_text(with_slip(text, key))
        line = key.start_mark.line + 1
        with pytest.raises(UserError) as caught:
            load_config(schema_of(path), wrong)
        expected = f"{wrong}:{line}: {dotted}{dotted[-1]}: unknown key; did you mean {dotted}?"
        assert expected in str(caught.value), str(caught.value)


@each_config
def test_the_resolved_configuration_loads_back_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(schema_of(path), path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(schema_of(path), resolved) == config


def load_grpo(path: Path) -> GrpoConfig:
    return load_config(GrpoConfig, path)


@each_recipe
def test_the_commands_of_a_recipe_fit_the_recipe(path: Path) -> None:
    """The model that is downloaded is the one that is trained, and the file that is named is this one."""
    text = path.read_text()
    config = load_dpo(path) if path.stem.startswith("dpo_") else load_grpo(path)
    (repo,) = re.findall(r"^#   python scripts/download_model\.py (\S+)", text, flags=re.MULTILINE)
    assert config.model.path == f"model/{repo.rpartition('/')[2]}"
    named = set(re.findall(r"--config (\S+)", text))
    assert named == {str(path.relative_to(ROOT))}
    assert "calculated, not measured" in text and "Not tried here" in text


@each_dpo_recipe
def test_the_table_of_recipes_tells_what_the_files_say(path: Path) -> None:
    rows = (path.parent / "README.md").read_text().splitlines()
    (row,) = [row for row in rows if f"]({path.name})" in row]
    _, model, data, beta, trains, memory = [cell.strip() for cell in row.strip("|").split("|")][1:]
    text, config = path.read_text(), load_dpo(path)
    assert model.split(",")[0].rpartition("/")[2] == Path(config.model.path).name
    assert config.data.train == (data,) or config.data.train[0].startswith("data/raw/")
    assert float(beta.split()[0]) == config.loss.beta
    assert trains == ("all weights" if config.lora is None else "LoRA")
    assert f"peak about {memory} GB" in text


@pytest.mark.parametrize(
    ("name", "beta", "model"),
    [
        ("dpo_tldr_summarization", 0.5, "pythia"),
        ("dpo_hh_dialogue", 0.1, "pythia-2.8b"),
        ("dpo_imdb_sentiment", 0.1, "gpt2-large"),
    ],
)
def test_the_recipes_of_the_paper_use_its_settings(name: str, beta: float, model: str) -> None:
    """Rafailov et al. 2023, appendix B: RMSprop, 1e-6 after 150 steps of linear warm-up, 64 pairs, beta by task."""
    config = load_dpo(ROOT / "configs" / "recipes" / f"{name}.yaml")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.warmup_steps) == ("rmsprop", 1e-6, 150)
    assert optimizer.schedule == "constant"
    assert (config.loss.beta, config.loss.label_smoothing) == (beta, 0.0)
    assert config.lora is None and model in config.model.path
    pairs_per_group = 6 if name == "dpo_imdb_sentiment" else 1  # four ranked samples of a prefix
    assert abs(config.run.groups_per_step * pairs_per_group - 64) < pairs_per_group


@each_dpo_recipe
def test_the_longest_group_that_may_come_fits_into_a_forward(path: Path) -> None:
    """A longer one would run alone and need more memory than the recipe says."""
    config = load_dpo(path)
    completions = 4 if path.stem == "dpo_imdb_sentiment" else 2
    longest = config.data.max_prompt_tokens + completions * config.data.max_completion_tokens
    assert longest <= config.run.tokens_per_forward


@each_grpo_recipe
def test_an_answer_of_the_longest_kind_fits_into_a_forward(path: Path) -> None:
    """A whole group goes through at once; a larger one would need more memory than the recipe says."""
    config = load_grpo(path)
    group = config.data.max_prompt_tokens + config.rollout.completions_per_prompt * config.sampling.max_new_tokens
    assert group <= config.run.tokens_per_forward


def test_the_recipe_of_deepseekmath_uses_its_settings() -> None:
    """Shao et al. 2024, section 4.2: 1e-6, KL 0.04, 64 samples of up to 1024 tokens, one update per rollout."""
    config = load_grpo(ROOT / "configs" / "recipes" / "grpo_deepseekmath.yaml")
    assert (config.optimizer.learning_rate, config.loss.kl_coefficient, config.loss.preset) == (1e-6, 0.04, "grpo")
    assert (config.rollout.completions_per_prompt, config.sampling.max_new_tokens) == (64, 1024)
    assert config.rollout.updates == 1 and config.lora is None
    assert config.run.groups_per_step * config.rollout.completions_per_prompt == 1024


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_launch_files_load_and_leave_precision_and_sharding_to_the_run(path: Path) -> None:
    """What the run's own keys decide stands nowhere else."""
    launch: Any = load_config_from_file(str(path))
    assert launch.num_processes > 1 and launch.mixed_precision == "no"
    assert not launch.fsdp_config and not launch.deepspeed_config
