"""A LoRA adapter by PEFT: injected into a network, written to a folder, put back.

Knows nothing of how it is trained, nor of the reference.
"""

import json
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from groupwise.errors import UserError, first_line
from groupwise.model.nf4 import is_nf4
from groupwise.sections import LoraSection

# Mamba reads the weights of these layers directly and would pass an adapter by.
_BYPASSED_BY_MAMBA = ["out_proj", "dt_proj"]


def add_adapter(model: PreTrainedModel, lora: LoraSection, seed: int) -> PeftModel:
    """Freeze the model and inject a fresh adapter, whose random half depends on the seed alone."""
    modules = lora.target_modules
    linear = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module)})
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        use_rslora=lora.rank_stabilized,
        target_modules=modules if isinstance(modules, str) else list(modules),
        exclude_modules=_without_adapter(model) if modules == "all-linear" else None,
        fan_in_fan_out=_uses_conv1d(model),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return cast(PeftModel, get_peft_model(model, config))
        except ValueError as error:
            raise UserError(
                f"lora.target_modules: {first_line(error)} Linear layers here: {', '.join(linear)}."
            ) from error


def save_adapter(adapter: PeftModel, folder: Path) -> None:
    """Write an adapter as PEFT loads it; same weights, same bytes."""
    adapter.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    config_file = folder / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def restore_adapter(adapter: PeftModel, folder: Path) -> None:
    """Put back what `save_adapter` wrote. Raises UserError when the folder holds an adapter of other layers."""
    weights = load_file(folder / "adapter_model.safetensors")
    expected = set(get_peft_model_state_dict(adapter))
    if set(weights) != expected:
        odd = sorted(set(weights) ^ expected)
        raise UserError(f"{folder}: is no adapter of this run; {len(odd)} tensors differ, such as {odd[0]}")
    set_peft_model_state_dict(adapter, weights)


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is one matrix product, as a linear layer or as GPT-2's with its weight transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _without_adapter(model: nn.Module) -> list[str] | None:
    """Names of layers that look linear and cannot carry an adapter: routers with a forward of their own, Mamba's."""
    own_forward = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward and not is_nf4(module)
    }
    recurrent = any("mamba" in type(module).__name__.lower() for module in model.modules())
    return sorted(own_forward | set(_BYPASSED_BY_MAMBA if recurrent else ())) or None


def _uses_conv1d(model: nn.Module) -> bool:
    """GPT-2's linear layers store their weight transposed, which LoRA must be told."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())
