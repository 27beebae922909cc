"""An exported model is the trained one, in files that need no pickle, or it is not there at all."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo import dpo_trainer, train_dpo
from groupwise.deploy import merge
from groupwise.errors import RunStopped, UserError
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection
from groupwise.train.run_folder import RunFolder
from groupwise.train.summary import stored_figures
from scripts import export
from tests.families import FAMILIES, make_model
from tests.model.test_engine import make_policy


def exported(run: Path, target: Path, *flags: str) -> Path:
    export.main([str(run), "--merged", str(target), *flags])
    return target


def test_transformers_loads_what_peft_would_have_given(finished_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    target = exported(finished_run, tmp_path / "new" / "merged")
    merged = AutoModelForCausalLM.from_pretrained(target).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    ids = tokenizer("We saw it on Friday. The acting is not bad at all.", return_tensors="pt")
    with torch.no_grad():
        plain = base(**ids).logits
        tuned = peft.PeftModel.from_pretrained(base, str(finished_run / "adapter")).eval()(**ids).logits
        found = merged(**ids).logits
    assert (found - tuned).abs().max() < 2e-5 * tuned.abs().max().clamp(min=1)
    assert (plain - tuned).abs().max() > 0.1
    assert {file.suffix for file in target.iterdir()} == {".json", ".md", ".safetensors"}
    assert not list(target.parent.glob(".writing-*"))


def test_the_card_says_what_is_known_and_no_more(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = exported(finished_run, tmp_path / "merged", "--license", "apache-2.0")
    _, front, body = (target / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "apache-2.0" and head["data_license"] == "unknown"
    assert head["base_model"] == "tiny" and head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation" and "datasets" not in head and "dpo" in head["tags"]
    before, after = stored_figures(RunFolder(finished_run))
    for figures in (before, after):
        figure = figures["rewards/margins"]
        assert f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]" in body
    assert "Licence of the training data: unknown" in body
    assert "learning_rate: 0.01" in body and "torch " in body
    proof = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("largest difference"))
    assert f"- {proof}\n" in body


def test_a_folder_that_exists_is_left_as_it_is(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link"):
        with pytest.raises(UserError, match="exists and is left as it is"):
            exported(finished_run, tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "there"]
    assert not list((tmp_path / "there").iterdir())


def forgotten(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The base alone."""
    yield from ()


def spoiled(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """A thousandth too much of everything."""
    yield from ((name, weight * 1.001) for name, weight in original(policy))


def not_a_number(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, weight * float("nan")) for name, weight in original(policy))


original = Policy.merged_weights


@pytest.mark.parametrize("fault", [forgotten, spoiled, not_a_number])
def test_a_merge_that_went_wrong_is_not_put_in_place(
    fault: Any, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "merged_weights", fault)
        with pytest.raises(RunStopped, match="not the model that was trained|not read back"):
            exported(finished_run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert exported(finished_run, tmp_path / "merged").is_dir()  # what was left aside is in nobody's way


def test_weights_that_the_disk_changed_are_found(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped low bit moves no logit by more than rounding."""
    written = merge.write_merged

    def flip(policy: Policy, config: Any, folder: Path) -> None:
        written(policy, config, folder)
        file = folder / "model.safetensors"
        name = "transformer.h.1.mlp.c_fc.weight"
        value = load_file(file)[name].numpy().tobytes()
        data = bytearray(file.read_bytes())
        data[data.index(value)] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(merge, "write_merged", flip)
    with pytest.raises(RunStopped, match=r"c_fc\.weight is not read back"):
        exported(finished_run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_kill_leaves_nothing_half(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merge, "prove", killed)
        with pytest.raises(KeyboardInterrupt):
            exported(finished_run, tmp_path / "merged")
    assert [file.name for file in tmp_path.iterdir()] == [".writing-merged"]
    exported(finished_run, tmp_path / "merged")
    assert [file.name for file in tmp_path.iterdir()] == ["merged"]


def test_a_run_without_samples_cannot_be_proved(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "samples.jsonl").unlink()
    with pytest.raises(UserError, match=r"no samples\.jsonl"):
        exported(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_all_weights_trained_are_exported(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without LoRA: the folder holds to the bit what training saved."""
    monkeypatch.setattr(dpo_trainer, "CACHE", tmp_path / "cache")
    data = tmp_path / "pairs.jsonl"
    rows = [json.dumps({"prompt": f"Film {i}.", "chosen": " Lovely.", "rejected": " Dull."}) for i in range(20)]
    data.write_text("\n".join(rows))
    flags = ("--lora", "null", "--data.train", f"[{data}]", "--run.folder", str(tmp_path), "--run.name", "full")
    train_dpo.main(["--config", str(finished_run / "config.yaml"), *flags])
    target = exported(tmp_path / "full", tmp_path / "merged")
    found, trained = (load_file(folder / "model.safetensors") for folder in (target, tmp_path / "full" / "adapter"))
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], trained[name]) for name in found)


# --- the weights themselves


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mamba"}))
def test_merged_weights_are_the_adapted_function_in_every_family(family: str) -> None:
    policy = make_policy(family)
    fresh = make_model(family, dtype=policy.model.dtype)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain = fresh(ids).logits
        for name, weight in policy.merged_weights():
            fresh.get_parameter(name).copy_(weight)
        tuned, found = policy.model(ids).logits, fresh(ids).logits
    bound = 1e-4 if tuned.dtype == torch.float32 else 1e-9
    assert (found - tuned).abs().max() < bound < (plain - tuned).abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_and_update_are_added_in_float32_and_rounded_once(dtype: Any, tiny_model: Path) -> None:
    """W + alpha / rank * (B A)^T, from the matrices themselves; GPT-2 stores W transposed."""
    policy = Policy.load(ModelSection(path=str(tiny_model), dtype=dtype), LoraSection(rank=4), seed=0, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    weights = dict(policy.model.named_parameters())
    merged = dict(policy.merged_weights())
    assert len(merged) == 8
    for name, weight in merged.items():
        layer = name.removesuffix(".weight")
        A, B = (weights[f"{layer}.lora_{half}.default.weight"].float() for half in "AB")
        exact = weights[f"{layer}.base_layer.weight"].double() + (32 / 4 * (B.double() @ A.double())).T
        assert weight.dtype == getattr(torch, dtype)
        step = torch.finfo(weight.dtype).eps * exact.abs().clamp(min=2**-20)
        assert ((weight.double() - exact).abs() <= step * 0.51 + 1e-6).all()


def test_an_adapter_on_a_shared_weight_is_refused(tiny_model: Path) -> None:
    """GPT-2's output head is its embedding: a merge would change both."""
    section = LoraSection(rank=4, target_modules=("lm_head",))
    policy = Policy.load(ModelSection(path=str(tiny_model)), section, seed=0, device="cpu")
    with pytest.raises(UserError, match="lm_head: .*shares its weight"):
        list(policy.merged_weights())
