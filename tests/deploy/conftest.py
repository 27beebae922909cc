"""One finished run for all tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo import dpo_trainer, train_dpo

CONFIG = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA], heldout_groups: 6}
optimizer: {learning_rate: 1.0e-2, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 9, tokens_per_forward: 150}
eval: {every: 0, prompts: 4, score: review_sentiment}
sampling: {max_new_tokens: 24, temperature: 0.9}
"""


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, review_file: Callable[[int], Path]
) -> Path:
    """A DPO run with LoRA on the tiny model, whose training data is no longer there."""
    root = tmp_path_factory.mktemp("finished")
    data = review_file(30)
    file = root / "config.yaml"
    file.write_text(
        CONFIG.replace("MODEL", str(tiny_model)).replace("DATA", str(data)).replace("RUNS", str(root / "runs"))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo_trainer, "CACHE", root / "cache")
        train_dpo.main(["--config", str(file)])
    data.unlink()
    return root / "runs" / "run"
