"""The embedded GPT-2 as an OPT is the same function; a GPT-2 that OPT cannot be is refused."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from groupwise.errors import UserError
from scripts.make_opt_base import as_opt, largest_difference, main


def random_gpt2(**options: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=20, **options)).eval()  # pyright: ignore


def test_logits_are_the_same_up_to_the_last_position() -> None:
    model = random_gpt2()
    assert largest_difference(model, as_opt(model)) < 1e-5


def test_a_difference_would_be_seen() -> None:
    model = random_gpt2()
    opt = as_opt(model)
    with torch.no_grad():
        opt.model.decoder.embed_positions.weight[-1, 0] += 1  # the last position alone
    assert largest_difference(model, opt) > 1e-3


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False), ("tie_word_embeddings", False)],
)
def test_what_opt_cannot_do_is_refused(name: str, value: bool) -> None:
    with pytest.raises(UserError, match="OPT cannot"):
        as_opt(random_gpt2(**{name: value}))


def test_the_command_writes_a_folder_that_answers_as_the_base(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["make_opt_base.py", "--base", str(tiny_model), "--out", str(tmp_path / "opt")])
    main()
    ids = AutoTokenizer.from_pretrained(tmp_path / "opt")("We saw a film.", return_tensors="pt")["input_ids"]
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (tiny_model, tmp_path / "opt")]
    with torch.no_grad():
        own, other = (model(ids).logits for model in models)
    torch.testing.assert_close(other, own, atol=1e-4, rtol=1e-4)
