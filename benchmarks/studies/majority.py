"""Maj@K and Pass@K before and after GRPO: Figure 7 of Shao et al. 2024 (temperature 0.7) with the embedded model.

python -m benchmarks.studies.majority [--seeds 3] [--jobs 2]
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.plot import drawing
from benchmarks.studies.training import Training, parser, train_all, write_study
from grpo.eval import majority_is_right, pass_at_k

KS = (1, 2, 4, 8, 16, 32, 64)
FLAGS = {
    "eval.every": 0, "eval.samples_per_prompt": max(KS), "sampling.temperature": 0.7, "data.heldout_prompts": 128,
    "run.report": "false",
}  # fmt: skip
Lines = dict[str, list[float]]


def lines_of(run: Path, part: str) -> Lines:
    """Pass@K and Maj@K of one run's held-out samples, for every K."""
    rows: list[Any] = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    prompts = [row[part]["sampled"] for row in rows]
    rights = [[bool(sample["right"]) for sample in own] for own in prompts]
    answers = [[_answer(sample["text"]) for sample in own] for own in prompts]
    most = max(KS)
    return {
        "pass": [_mean([pass_at_k(most, sum(own), k) for own in rights]) for k in KS],
        "maj": [_mean([majority_is_right(a[:k], r[:k]) for a, r in zip(answers, rights, strict=True)]) for k in KS],
    }


def _answer(text: str) -> str | None:
    _, marker, behind = text.rpartition("#### ")
    return behind.strip() if marker else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    options = parser(__doc__, "runs/studies/majority").parse_args()
    runs = train_all([Training("grpo", "grpo", FLAGS, seed) for seed in range(options.seeds)], options)
    found: dict[str, Lines] = {}
    for part in ("before", "after"):
        own = [lines_of(run, part) for run in runs]
        for kind in ("pass", "maj"):
            found.setdefault(part, {})[kind] = [
                _mean(column) for column in zip(*(one[kind] for one in own), strict=True)
            ]
    draw(found, options.out / "majority.png")
    table = ["| figure | " + " | ".join(f"K {k}" for k in KS) + " |", "|---" * (len(KS) + 1) + "|"]
    for part, kinds in found.items():
        for kind, values in kinds.items():
            table.append(f"| {kind}@K {part} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    write_study(options.out, "majority", "\n".join(table) + "\n", found)


def draw(found: dict[str, Lines], file: Path) -> None:
    title = "Figure 7 at small scale: word problems, embedded model"
    with drawing(file, title=title, x="K, samples per problem", y="share of problems right") as axes:
        for part, style in (("before", "--"), ("after", "-")):
            for kind, colour in (("pass", "C0"), ("maj", "C1")):
                axes.plot(KS, found[part][kind], style, color=colour, marker="o", label=f"{kind}@K {part}")
        axes.set_xscale("log", base=2)


if __name__ == "__main__":
    main()
