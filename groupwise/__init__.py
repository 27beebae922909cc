"""Shared core of the DPO and GRPO trainers: groups in, log-probs and weight updates out."""

import logging
import os

# Read when huggingface_hub is first imported: nobody is told that this program runs.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# PEFT imports bitsandbytes where it is installed, and that warns of a kernel of the hub's that it would have fetched.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
