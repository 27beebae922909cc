"""The reward-KL frontier of the sentiment task: Figure 2 (left) of Rafailov et al. 2023 with the embedded model.

    python -m benchmarks.studies.frontier [--seeds 3] [--jobs 2]

DPO for several beta, preferred fine-tuning and unlikelihood learn from the same pairs; GRPO samples reviews for the
same prompts and sees their ground truth; Best-of-N draws N reviews of the base and keeps the best by ground truth.
All are measured alike: reviews of held-out prompts, ground-truth score, sequence KL to the base.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.studies.plot import drawing
from benchmarks.studies.sentiment import Measured, Writer, positive_share
from benchmarks.studies.training import Training, parser, train_all, write_study

Point = tuple[str, str, int, Measured]  # method, setting, seed, what was measured
BETAS = (0.3, 1.0, 3.0, 10.0)
UNLIKELIHOOD = (0.1, 0.5, 1.0)
KL_COEFFICIENTS = (0.03, 0.1, 0.3)
BEST_OF = (2, 4, 16, 64)
PAIRS = {"data.limit": 3000, "eval.every": 0, "eval.prompts": 64, "run.report": "false", "run.checkpoint_every": 0}
GROUPS = {
    "data.train": "[data/raw/reviews.jsonl]", "data.split": "null", "data.heldout": "[data/raw/reviews_heldout.jsonl]",
    "data.heldout_split": "null", "rewards": "[{name: review_sentiment, options: {with_prompt: true}}]",
    "eval.every": 0, "eval.threshold": 0.001, "eval.samples_per_prompt": 1, "eval.answer_marker": "null",
    "data.heldout_prompts": 64, "run.report": "false", "sampling.temperature": 0.7, "steps": 60,
    "run.checkpoint_every": 0,
}  # fmt: skip
SHOWN = 50.0  # nats
MARKS = {"DPO": "o", "preferred fine-tuning": "s", "unlikelihood": "v", "GRPO": "^", "Best-of-N": "*", "base": "x"}


def trainings(seeds: int) -> list[tuple[str, str, Training]]:
    """Method and setting of every run."""
    kinds: list[tuple[str, str, str, dict[str, object]]] = [
        *(("DPO", f"beta {beta:g}", "dpo", {**PAIRS, "loss.beta": beta}) for beta in BETAS),
        ("preferred fine-tuning", "one epoch", "dpo", {**PAIRS, **_objective("sft")}),
        *(
            ("unlikelihood", f"alpha {a:g}", "dpo", {**PAIRS, **_objective("unlikelihood", unlikelihood_weight=a)})
            for a in UNLIKELIHOOD
        ),
        *(("GRPO", f"KL {kl:g}", "grpo", {**GROUPS, "loss.kl_coefficient": kl}) for kl in KL_COEFFICIENTS),
    ]
    return [
        (name, setting, Training(method, f"{name} {setting}".replace(" ", "-"), flags, seed))
        for name, setting, method, flags in kinds
        for seed in range(seeds)
    ]


def _objective(name: str, **keys: float) -> dict[str, object]:
    """An objective that reads none of the keys that the default configuration sets for DPO."""
    own = {f"loss.{key}": value for key, value in keys.items()}
    return {"loss.objective": name, "loss.beta": "null", "loss.label_smoothing": "null", **own}


def best_of(seeds: int) -> list[Point]:
    """Best of N by ground truth; its KL is at most log N - (N - 1) / N (arXiv 2009.01325), which is what is shown."""
    base = Writer()
    points: list[Point] = []
    for seed in range(seeds):
        drawn = base.write(n=max(BEST_OF), seed=seed)
        for n in BEST_OF:
            scores = [max(completion.score for completion in own[:n]) for own in drawn]
            kl = math.log(n) - (n - 1) / n
            points.append(
                ("Best-of-N", f"N {n}", seed, Measured(sum(scores) / len(scores), positive_share(scores), kl))
            )
    return points


def measure(options: Namespace) -> list[Point]:
    wanted = trainings(options.seeds)
    folders = train_all([training for _, _, training in wanted], options)
    points: list[Point] = [("base", "untrained", 0, Writer().measure())]
    for (name, setting, training), folder in zip(wanted, folders, strict=True):
        points.append((name, setting, training.seed, Writer(folder).measure()))
        print(*points[-1], flush=True)
    return points + best_of(options.seeds)


def draw(points: Sequence[Point], file: Path) -> None:
    """What went further than SHOWN is text fallen apart; it is named, and left out of the picture."""
    fallen = ", ".join(dict.fromkeys(f"{name} {setting}" for name, setting, _, one in points if one.kl > SHOWN))
    x = "sequence KL to the base, nats" + (f" (off to the right: {fallen})" if fallen else "")
    title = "Reward against KL, sentiment task, embedded model"
    with drawing(file, title=title, x=x, y="mean ground-truth score, -1 to 1") as axes:
        for name, mark in MARKS.items():
            own = [(one.kl, one.score) for method, _, _, one in points if method == name and one.kl <= SHOWN]
            axes.scatter(*zip(*own, strict=True), marker=mark, s=36, label=name, alpha=0.8)


def table(points: Sequence[Point]) -> str:
    """Means over seeds, and the lowest and highest of them."""
    lines = ["| method | setting | runs | score | positive | KL, nats |", "|---|---|---|---|---|---|"]
    for name, setting in dict.fromkeys((name, setting) for name, setting, _, _ in points):
        own = [one for method, which, _, one in points if (method, which) == (name, setting)]
        cells = [
            _spread([getattr(one, key) for one in own], digits)
            for key, digits in (("score", 2), ("positive", 3), ("kl", 2))
        ]
        lines.append(f"| {name} | {setting} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    options = parser(__doc__, "runs/studies/frontier").parse_args()
    points = measure(options)
    draw(points, options.out / "frontier.png")
    write_study(options.out, "frontier", table(points), [(*point[:3], asdict(point[3])) for point in points])


if __name__ == "__main__":
    main()
