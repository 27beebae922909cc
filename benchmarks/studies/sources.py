"""RFT, Online RFT, GRPO with outcome and process supervision: Figure 5 of Shao et al. 2024 with the embedded model.

    python -m benchmarks.studies.sources [--seeds 3] [--jobs 2]

Same prompts, samples per prompt and optimizer steps for all; RFT learns from the right answers of the base model,
Online RFT from those of the policy as it is, GRPO from all answers of the policy, against their group.
"""

from benchmarks.studies.arithmetic import accuracy, draw, table
from benchmarks.studies.training import Training, parser, train_all, write_study

STEPS, EVERY = 60, 5
COMMON = {"steps": STEPS, "eval.every": EVERY, "eval.samples_per_prompt": 4, "run.report": "false"}
KINDS: dict[str, dict[str, object]] = {
    "RFT": {"loss.preset": "rft"},
    "Online RFT": {"loss.preset": "online_rft"},
    "GRPO, outcome": {},
    "GRPO, process": {"rewards": "[{name: exact_answer}, {name: worked_steps}]"},
}


def main() -> None:
    options = parser(__doc__, "runs/studies/sources").parse_args()
    curves = {
        name: [
            accuracy(run)
            for run in train_all(
                [
                    Training("grpo", name.replace(", ", "-").replace(" ", "-"), {**COMMON, **flags}, seed)
                    for seed in range(options.seeds)
                ],
                options,
            )
        ]
        for name, flags in KINDS.items()
    }
    draw(curves, options.out / "sources.png", title="Figure 5 at small scale: word problems, embedded model")
    steps = [0, 5, 10, 20, 40, STEPS]
    write_study(options.out, "sources", table(curves, steps), {name: list(runs) for name, runs in curves.items()})


if __name__ == "__main__":
    main()
