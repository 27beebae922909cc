"""The model of a finished run, loaded again without its data, and what the run drew at its end. Knows no method."""

from dataclasses import dataclass
from typing import Any, Protocol

from groupwise.model.loading import quiet_libraries
from groupwise.model.policy import Policy
from groupwise.observe.samples import Answers, Sample, read_samples
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
    return Trained(policy, runtime, restore_trained(policy, folder, config.model))


def held_out_samples(folder: RunFolder) -> list[HeldOutSample]:
    """What the run's samples.jsonl holds, of any method; nothing when there is no such file.

    Raises UserError for a file that no run wrote.
    """
    return [
        HeldOutSample(one.prompt, tuple(answer.text for answer in _all(one.after)))
        for one in read_samples(folder.samples)
    ]


def _all(answers: Answers) -> list[Sample]:
    return [*([] if answers.greedy is None else [answers.greedy]), *answers.sampled]
