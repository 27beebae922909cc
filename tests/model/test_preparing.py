"""A prepared network is one function."""

import torch

from groupwise.batch import pack
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection
from tests.conftest import random_groups
from tests.families import VOCABULARY, make_model
from tests.model.test_engine import no_tokenizer


def test_dropout_is_off_even_in_training_mode() -> None:
    """OPT keeps its dropout as a number on the layer; the peer samples and scores with LoRA dropout on."""
    model = make_model("opt")
    policy = Policy(model, no_tokenizer(), lora=LoraSection(rank=2))
    model.train()
    batch = pack(random_groups(2, vocabulary=VOCABULARY, seed=8))
    engine = LogprobEngine(policy)
    with torch.no_grad():
        assert torch.equal(engine.score(batch).logp_T, engine.score(batch).logp_T)
