"""Write the embedded GPT-2 as an OPT: the same function in an architecture that vLLM can put adapters on.

    python scripts/make_opt_base.py                            # model/base_gpt2 -> model/base_opt

vLLM has no LoRA for GPT-2. OPT is the same network under other names: layer norms before each block, learned positions,
a tied head; its three projections of attention are separate matrices, and its positions start at row 2 of their table.
The logits of both are compared before anything is written. Knows nothing about servers.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from groupwise.errors import UserError, exit_with_user_errors

ROOT = Path(__file__).resolve().parent.parent
_OFFSET = 2  # rows of OPT's table of positions that no position uses
_PARTS = ("q_proj", "k_proj", "v_proj")


def as_opt(model: GPT2LMHeadModel) -> OPTForCausalLM:
    """An OPT that computes what a GPT-2 does. Raises UserError for one with options that OPT has not."""
    config = model.config
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights or not config.tie_word_embeddings:
        raise UserError("this GPT-2 scales attention in a way of its own, or does not tie its head; OPT cannot")
    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            word_embed_proj_dim=config.n_embd,
            ffn_dim=config.n_inner or 4 * config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            max_position_embeddings=config.n_positions,
            activation_function=config.activation_function,
            dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    )
    opt.load_state_dict(renamed(model), strict=True)
    return opt.eval()


def renamed(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The weights of a GPT-2 under OPT's names; its matrices are stored transposed."""
    old = model.state_dict()
    prefix, decoder = "transformer.", "model.decoder."
    positions = old[f"{prefix}wpe.weight"]
    new = {
        f"{decoder}embed_tokens.weight": old[f"{prefix}wte.weight"],
        "lm_head.weight": old[f"{prefix}wte.weight"],
        f"{decoder}embed_positions.weight": torch.cat([positions.new_zeros(_OFFSET, positions.shape[1]), positions]),
        f"{decoder}final_layer_norm.weight": old[f"{prefix}ln_f.weight"],
        f"{decoder}final_layer_norm.bias": old[f"{prefix}ln_f.bias"],
    }
    plain = {"attn.c_proj": "self_attn.out_proj", "mlp.c_fc": "fc1", "mlp.c_proj": "fc2"}
    norms = {"ln_1": "self_attn_layer_norm", "ln_2": "final_layer_norm"}
    for layer in range(model.config.n_layer):
        source, target = f"{prefix}h.{layer}.", f"{decoder}layers.{layer}."
        weights = old[f"{source}attn.c_attn.weight"].t().chunk(3)
        biases = old[f"{source}attn.c_attn.bias"].chunk(3)
        for part, weight, bias in zip(_PARTS, weights, biases, strict=True):
            new[f"{target}self_attn.{part}.weight"], new[f"{target}self_attn.{part}.bias"] = weight, bias
        for name, other in plain.items():
            new[f"{target}{other}.weight"] = old[f"{source}{name}.weight"].t()
            new[f"{target}{other}.bias"] = old[f"{source}{name}.bias"]
        for name, other in norms.items():
            new[f"{target}{other}.weight"] = old[f"{source}{name}.weight"]
            new[f"{target}{other}.bias"] = old[f"{source}{name}.bias"]
    return {name: value.contiguous() for name, value in new.items()}


@torch.no_grad()
def largest_difference(model: GPT2LMHeadModel, opt: OPTForCausalLM) -> float:
    """Of the logits of both over made-up texts of the full length, in nats."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    ids = torch.randint(1, config.vocab_size, (2, config.n_positions), generator=generator)
    return (model(ids).logits - opt(ids).logits).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "model" / "base_gpt2", help="folder with a GPT-2")
    parser.add_argument("--out", type=Path, default=ROOT / "model" / "base_opt", help="folder to write")
    args = parser.parse_args()
    model = GPT2LMHeadModel.from_pretrained(args.base).eval()
    opt = as_opt(model)
    gap = largest_difference(model, opt)
    if not gap < 1e-3:
        raise UserError(f"{args.base}: its OPT differs by {gap:.2g} in a logit, so nothing was written")
    opt.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.base).save_pretrained(args.out)
    print(f"{args.out}: logits of both agree to {gap:.1g}")


if __name__ == "__main__":
    with exit_with_user_errors():
        main()
