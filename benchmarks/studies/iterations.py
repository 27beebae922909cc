"""Iterations of GRPO with a reward model that goes on learning: Figure 6 of Shao et al. 2024 with the embedded model.

    python -m benchmarks.studies.iterations [--seeds 3] [--jobs 2]

Every iteration resets the reference to the policy and lets the reward model learn from what the policy writes by then,
with 10 % replay. Against it: a reward model that learned once, before the first step.
"""

from benchmarks.studies.arithmetic import accuracy, draw, table
from benchmarks.studies.training import Training, parser, train_all, write_study

STEPS, LENGTH = 60, 20
COMMON = {"steps": STEPS, "eval.every": 5, "eval.samples_per_prompt": 4, "run.report": "false"}
ITERATIONS = {"loss.reference": "copy", "loss.reference_every": LENGTH}
KINDS: dict[str, dict[str, object]] = {
    "three iterations": {**ITERATIONS, "reward_model": f"{{first_prompts: 64, every: {LENGTH}}}"},
    "one iteration": {"reward_model": f"{{first_prompts: 64, every: {STEPS}}}"},
}


def main() -> None:
    options = parser(__doc__, "runs/studies/iterations").parse_args()
    curves = {
        name: [
            accuracy(run)
            for run in train_all(
                [Training("grpo", name.replace(" ", "-"), {**COMMON, **flags}, seed) for seed in range(options.seeds)],
                options,
            )
        ]
        for name, flags in KINDS.items()
    }
    marks = range(LENGTH, STEPS, LENGTH)
    title = "Figure 6 at small scale: word problems, embedded model"
    draw(curves, options.out / "iterations.png", title=title, marks=marks)
    steps = [0, 10, 20, 30, 40, 50, STEPS]
    write_study(options.out, "iterations", table(curves, steps), {name: list(runs) for name, runs in curves.items()})


if __name__ == "__main__":
    main()
