"""Win rate against temperature: Figure 2 (right) and 3 of Rafailov et al. 2023 with the embedded model.

    python -m benchmarks.studies.temperature [--seeds 3] [--jobs 2]

A review wins against the data's preferred review of the same prompt where its ground-truth score is higher; a tie is
half a win. Compared: the base model, the best of 16 of its reviews, and of the frontier's runs, which are trained if
they are not there, DPO at beta 1 and preferred fine-tuning.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.frontier import trainings
from benchmarks.studies.plot import drawing
from benchmarks.studies.sentiment import PROMPTS, Writer
from benchmarks.studies.training import parser, train_all, write_study
from groupwise.data.rows import read_rows
from groupwise.observe.statistics import Figure, mean_interval
from groupwise.rewards.load import load_score

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
BEST_OF = 16
COMPARED = {"DPO": "beta 1", "preferred fine-tuning": "one epoch"}


def chosen_scores() -> list[float]:
    """Ground-truth score of the data's preferred review of every held-out prompt."""
    score = load_score("review_sentiment", key="study")
    return [score(f"{row.values['prompt']}{row.values['chosen']}") for row in read_rows(PROMPTS)]


def wins(scores: Sequence[float], against: Sequence[float]) -> list[float]:
    return [(ours > theirs) + (ours == theirs) / 2 for ours, theirs in zip(scores, against, strict=True)]


def curve(writers: Sequence[Writer], n: int) -> list[Figure]:
    """Win rate at every temperature, over prompts and writers; `n`: the best of so many reviews."""
    against = chosen_scores()
    figures: list[Figure] = []
    for temperature in TEMPERATURES:
        found: list[float] = []
        for seed, writer in enumerate(writers):
            drawn = writer.write(n=1 if temperature == 0 else n, temperature=temperature, seed=seed)
            found += wins([max(completion.score for completion in own) for own in drawn], against)
        figures.append(mean_interval(found))
    return figures


def main() -> None:
    options = parser(__doc__, "runs/studies/frontier").parse_args()
    wanted = trainings(options.seeds)
    writers = {
        method: [Writer(run) for run in train_all([t for m, s, t in wanted if (m, s) == (method, setting)], options)]
        for method, setting in COMPARED.items()
    }
    base = [Writer() for _ in range(options.seeds)]
    curves = {
        **{method: curve(own, 1) for method, own in writers.items()},
        f"best of {BEST_OF} of the base": curve(base, BEST_OF),
        "base": curve(base, 1),
    }
    draw(curves, options.out / "temperature.png")
    lines = ["| writer | " + " | ".join(f"T {t:g}" for t in TEMPERATURES) + " |", "|---" * 6 + "|"]
    lines += [f"| {name} | " + " | ".join(map(_cell, own)) + " |" for name, own in curves.items()]
    write_study(
        options.out,
        "temperature",
        "\n".join(lines) + "\n",
        {name: [figure.as_dict() for figure in own] for name, own in curves.items()},
    )


def draw(curves: dict[str, list[Figure]], file: Path) -> None:
    title = "Win rate against temperature, sentiment task, embedded model"
    with drawing(file, title=title, x="sampling temperature", y="share of wins against preferred reviews") as axes:
        for name, own in curves.items():
            low = [max(0.0, one.value - one.low) for one in own]
            high = [max(0.0, one.high - one.value) for one in own]
            values = [one.value for one in own]
            axes.errorbar(TEMPERATURES, values, yerr=[low, high], label=name, marker="o", capsize=3)


def _cell(figure: Figure) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


if __name__ == "__main__":
    main()
