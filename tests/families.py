"""Tiny random models of the families the engine must handle, small enough to compare exactly in float64."""

from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 97
_DECODER = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


def _config(model_type: str, **settings: object) -> Callable[[], PreTrainedConfig]:
    return lambda: AutoConfig.for_model(model_type, pad_token_id=0, bos_token_id=0, eos_token_id=0, **settings)


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _config("gpt2", vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "llama": _config("llama", **_DECODER),
    "qwen2": _config("qwen2", **_DECODER),
    "qwen3": _config("qwen3", head_dim=8, **_DECODER),
    "mistral": _config("mistral", sliding_window=7, **_DECODER),
    "gemma2": _config("gemma2", head_dim=8, sliding_window=6, query_pre_attn_scalar=8, **_DECODER),
    "gemma3_text": _config("gemma3_text", head_dim=8, sliding_window=5, query_pre_attn_scalar=8, **_DECODER),
    "phi3": _config("phi3", **_DECODER),
    "gpt_neox": _config("gpt_neox", **{k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}),
    "opt": _config(
        "opt", vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, dropout=0.1,
    ),
    "granite": _config("granite", logits_scaling=3.0, **_DECODER),
    "cohere": _config("cohere", logit_scale=0.3, **_DECODER),
    "gpt_oss": _config(
        "gpt_oss", head_dim=8, sliding_window=6, num_local_experts=4, num_experts_per_tok=2, **_DECODER,
    ),
    "mamba": _config("mamba", vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2),
}  # fmt: skip
RECURRENT = {"mamba"}


def make_model(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A random model of the family, with weights large enough that a wrong attention pattern shows."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.initializer_range = 0.2
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
