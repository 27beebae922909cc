"""RFT, Online RFT, GRPO with outcome and process supervision: Figure 5 of Shao et al. 2024 with the embedded model.

    python -m benchmarks.studies.sources [--seeds 3] [--jobs 2]

Same prompts, samples per prompt and optimizer steps for all; RFT learns from the right answers of the base model,
Online RFT from those of the policy as it is, GRPO from all answers of the policy, against their group.
"""

from benchmarks.studies.arithmetic import compare

KINDS: dict[str, dict[str, object]] = {
    "RFT": {"loss.preset": "rft"},
    "Online RFT": {"loss.preset": "online_rft"},
    "GRPO, outcome": {},
    "GRPO, process": {"rewards": "[{name: exact_answer}, {name: worked_steps}]"},
}


def main() -> None:
    compare("sources", KINDS, steps=40, title="Figure 5 at small scale: word problems, embedded model", about=__doc__)


if __name__ == "__main__":
    main()
