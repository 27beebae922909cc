"""Shared core of the DPO and GRPO trainers: groups in, log-probs and weight updates out."""
