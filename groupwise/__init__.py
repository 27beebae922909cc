"""Shared core of the DPO and GRPO trainers: groups in, log-probs and weight updates out."""

import os

# Read when huggingface_hub is first imported: nobody is told that this program runs.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
