"""Word problems: curves of held-out accuracy of several runs, as in Figures 5 and 6 of Shao et al. 2024."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies.plot import drawing
from benchmarks.studies.training import Training, parser, summary, train_all, write_study
from groupwise.observe.metrics import read_metrics

Curve = Sequence[tuple[int, float]]
EVERY = 5  # optimizer steps between points of a curve


def compare(
    name: str,
    kinds: Mapping[str, Mapping[str, object]],
    *,
    steps: int,
    title: str,
    about: str | None,
    marks: Sequence[int] = (),
) -> None:
    """A whole study: GRPO runs that differ by the flags of their kind, their curves as a figure and a table."""
    options = parser(about, f"runs/studies/{name}").parse_args()
    common = {"steps": steps, "eval.every": EVERY, "eval.samples_per_prompt": 4, "run.report": "false"}
    curves = {
        kind: [
            accuracy(run)
            for run in train_all(
                [
                    Training("grpo", kind.replace(",", "").replace(" ", "-"), {**common, **flags}, seed)
                    for seed in range(options.seeds)
                ],
                options,
            )
        ]
        for kind, flags in kinds.items()
    }
    draw(curves, options.out / f"{name}.png", title=title, marks=marks)
    shown = [0, EVERY, *range(2 * EVERY, steps, 2 * EVERY), steps]
    write_study(options.out, name, table(curves, shown), {kind: list(runs) for kind, runs in curves.items()})


def accuracy(run: Path) -> Curve:
    """Held-out pass@1 by step, the start included."""
    before = float(summary(run)["before"]["pass@1"]["value"])
    return [
        (0, before),
        *(
            (int(row["step"]), row["eval/pass@1"])
            for row in read_metrics(run / "metrics.jsonl")
            if "eval/pass@1" in row
        ),
    ]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Step by step the mean over runs that were measured at the same steps."""
    return [(own[0][0], sum(value for _, value in own) / len(own)) for own in zip(*curves, strict=True)]


def draw(curves: Mapping[str, Sequence[Curve]], file: Path, *, title: str, marks: Sequence[int] = ()) -> None:
    """One thick line per kind, its runs as thin ones; vertical lines at the steps `marks`."""
    with drawing(file, title=title, x="optimizer step", y="held-out pass@1") as axes:
        for index, (name, runs) in enumerate(curves.items()):
            colour = f"C{index}"
            for run in runs:
                axes.plot(*zip(*run, strict=True), color=colour, linewidth=0.7, alpha=0.5)
            mean = zip(*mean_curve(runs), strict=True)
            axes.plot(*mean, color=colour, linewidth=2, label=name, marker="o", markersize=3)
        for step in marks:
            axes.axvline(step, color="#999999", linewidth=0.8, linestyle="--")


def table(curves: Mapping[str, Sequence[Curve]], steps: Sequence[int]) -> str:
    """Means over runs at some steps, with the lowest and highest run at the last."""
    lines = [
        "| method | runs | " + " | ".join(f"step {step}" for step in steps) + " |",
        "|---" * (len(steps) + 2) + "|",
    ]
    for name, runs in curves.items():
        means = dict(mean_curve(runs))
        last = [run[-1][1] for run in runs]
        cells = [f"{means[step]:.3f}" for step in steps]
        cells[-1] += f" ({min(last):.3f} to {max(last):.3f})"
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
