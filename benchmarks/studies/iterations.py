"""Iterations of GRPO with a reward model that goes on learning: Figure 6 of Shao et al. 2024 with the embedded model.

    python -m benchmarks.studies.iterations [--seeds 3] [--jobs 2]

Every iteration resets the reference to the policy and lets the reward model learn from what the policy writes by then,
with 10 % replay. Against it: a reward model that learned once, before the first step.
"""

from benchmarks.studies.arithmetic import compare

STEPS, LENGTH = 45, 15
ITERATIONS = {"loss.reference": "copy", "loss.reference_every": LENGTH}
KINDS: dict[str, dict[str, object]] = {
    "three iterations": {**ITERATIONS, "reward_model": f"{{first_prompts: 64, every: {LENGTH}}}"},
    "one iteration": {"reward_model": f"{{first_prompts: 64, every: {STEPS}}}"},
}


def main() -> None:
    title = "Figure 6 at small scale: word problems, embedded model"
    compare("iterations", KINDS, steps=STEPS, title=title, about=__doc__, marks=range(LENGTH, STEPS, LENGTH))


if __name__ == "__main__":
    main()
