"""Model and tokenizer from a folder or the hub, as their publisher wrote them, or one line that says what is wrong.

Knows nothing of adapters, of training, or of what is made of a network afterwards.
"""

import contextlib
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from groupwise.errors import UserError, first_line
from groupwise.model.nf4 import loading_options, run_exactly
from groupwise.sections import LoraSection, ModelSection

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_network(section: ModelSection) -> PreTrainedModel:
    """The base model as its publisher wrote it, or stored in four bits where the section says so, on the CPU.

    Raises UserError when the path holds no model, when its weights are not safetensors, or when four bits need what is
    not here.
    """
    dtype = _DTYPES[section.dtype]
    stored = {} if section.quantization == "none" else loading_options(dtype)
    with _loading(section) as options:
        config = AutoConfig.from_pretrained(section.path, **options)
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            section.path, config=config, dtype=dtype, use_safetensors=True, **stored, **options
        )
    run_exactly(network)
    return network


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights. Raises UserError when the path holds no model, or a model without one."""
    with _loading(section) as options:
        tokenizer = AutoTokenizer.from_pretrained(section.path, **options)
    if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):
        raise UserError(f"model.path: {section.path} holds no tokenizer; put tokenizer.json beside the weights")
    return tokenizer


def precision_doubts(model: ModelSection, lora: LoraSection | None) -> list[str]:
    """A line for the user where weights are kept in a precision that training hardly moves."""
    if lora is not None or model.dtype != "bfloat16":
        return []
    return [
        "warning: all weights are trained in bfloat16, which rounds small updates away; "
        "model.dtype float32 with run.mixed_precision bf16 keeps them"
    ]


def quiet_libraries() -> None:
    """Keep loading bars and notes about the libraries' own future off the terminal; errors are raised all the same."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextlib.contextmanager
def _loading(section: ModelSection) -> Generator[dict[str, Any], None, None]:
    """Options to load a part of the model with; inside, what Transformers raises becomes a UserError."""
    _require_model(section)
    try:
        yield {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"model.path: cannot load {section.path!r}: {first_line(error)}") from error


def _require_model(section: ModelSection) -> None:
    """A path that looks local must be a folder with a model in it; anything else is a hub id."""
    path = Path(section.path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.path: {path} holds no config.json, so it is no model folder")
        return
    if section.path.count("/") != 1 or section.path.startswith((".", "/", "~")):
        raise UserError(
            f"model.path: {section.path!r} is neither a folder nor a hub id like owner/name; "
            "python scripts/download_model.py owner/name fetches one into model/"
        )
    if path.parent.is_dir():
        known = ", ".join(sorted(str(p.parent) for p in path.parent.glob("*/config.json"))) or "none"
        raise UserError(
            f"model.path: there is no folder {section.path!r}; models beside it: {known}; "
            "python scripts/download_model.py owner/name fetches one"
        )
