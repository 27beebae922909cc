"""The base is what training started from, whichever way it is held, for as long as it is asked for."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupwise.batch import pack
from groupwise.errors import UserError
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.sections import ModelSection
from tests.conftest import random_groups
from tests.families import VOCABULARY
from tests.model.test_engine import make_policy
from tests.model.test_reference import logp, train_a_little


def test_a_base_that_no_step_runs_is_loaded_only_while_it_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    section = ModelSection(path=str(folder))
    lean, rich = (Policy.load(section, None, seed=0, device="cpu", keep_base=keep) for keep in (False, True))
    engines = [LogprobEngine(policy) for policy in (lean, rich)]
    for policy in (lean, rich):
        train_a_little(policy, seed=1)
    assert len(lean.networks()) == 1 and len(rich.networks()) == 2
    assert lean.base_fingerprint() == rich.base_fingerprint()
    own, base = [logp(engine) for engine in engines], list[Tensor]()
    for policy, engine in zip((lean, rich), engines, strict=True):
        with policy.base(), policy.reference():
            base.append(logp(engine))
    assert torch.equal(own[0], own[1]) and torch.equal(base[0], base[1]) and not torch.allclose(own[0], base[0])
    assert len(lean.networks()) == 1 and torch.equal(logp(engines[0]), own[0])
    file = folder / "model.safetensors"
    save_file({name: value + 1e-4 for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match="has changed since this run loaded it"), lean.base():
        pass


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_nested_reference_contexts_stay_in_the_reference(lora: bool) -> None:
    """PEFT's disable_adapter switches the adapter back on at the end of an inner context."""
    policy = make_policy("gpt2", lora=lora)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.05)
    engine = LogprobEngine(policy)
    batch = pack(random_groups(2, vocabulary=VOCABULARY, seed=9))
    with torch.no_grad(), policy.reference():
        outer_T = engine.score(batch).logp_T
        with policy.reference():
            assert torch.equal(engine.score(batch).logp_T, outer_T)
        assert torch.equal(engine.score(batch).logp_T, outer_T)
    assert not torch.equal(engine.score(batch).logp_T, outer_T)
