"""The model of a finished run, loaded again without its data, and what the run drew at its end. Knows no method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from groupwise.data.rows import read_rows
from groupwise.errors import UserError
from groupwise.model.policy import Policy, quiet_libraries
from groupwise.sections import LoraSection, ModelSection, RunSection, SamplingSection
from groupwise.train.run import restore_trained
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime


class TrainedConfig(Protocol):
    """What the configurations of all methods have and a trained model is loaded from."""

    @property
    def model(self) -> ModelSection: ...
    @property
    def lora(self) -> LoraSection | None: ...
    @property
    def run(self) -> RunSection: ...
    @property
    def sampling(self) -> SamplingSection: ...


@dataclass(frozen=True, slots=True)
class Trained:
    """The policy as training left it, where it runs, and the run's summary."""

    policy: Policy
    runtime: Runtime
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class HeldOutSample:
    """A held-out prompt as text and what the trained model answered to it, special tokens left out of both."""

    prompt: str
    answers: tuple[str, ...]


def load_trained(folder: RunFolder, config: TrainedConfig) -> Trained:
    """Base model and what was trained of it. Raises UserError when either cannot be loaded or the base is another."""
    quiet_libraries()
    runtime = Runtime(mixed_precision=config.run.mixed_precision)
    policy = Policy.load(config.model, config.lora, seed=config.run.seed, device=runtime.device)
    return Trained(policy, runtime, restore_trained(policy, folder, model_path=config.model.path))


def read_samples(folder: RunFolder) -> list[HeldOutSample]:
    """What the run's samples.jsonl holds, of any method; nothing when there is no such file.

    Raises UserError for a file that no run wrote.
    """
    file = folder.path / "samples.jsonl"
    if not file.is_file():
        return []
    samples: list[HeldOutSample] = []
    for row in read_rows(str(file)):
        prompt, after = row.values.get("prompt"), row.values.get("after")
        answers = _texts(after)
        if not isinstance(prompt, str) or not answers:
            raise UserError(f"{row.key}: has no prompt and answers as a run writes them; run eval.py again on the run")
        samples.append(HeldOutSample(prompt, tuple(answers)))
    return samples


def _texts(value: object) -> list[str]:
    """All texts in what samples.jsonl holds of one prompt, in the order written."""
    if isinstance(value, Mapping):
        held = cast(Mapping[str, object], value)
        if isinstance(text := held.get("text"), str):
            return [text]
        return [text for part in held.values() for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in cast(Sequence[object], value) for text in _texts(part)]
    return []
