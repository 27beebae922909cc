"""Several runs on one page: what was different, who is better and whether that is luck. Knows no method.

The intervals are of paired differences over the prompts that two runs share, so they are those of the comparison and
not of the runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise.config import settings
from groupwise.observe.samples import PromptSamples
from groupwise.observe.statistics import Figure, paired_difference
from groupwise.report.curves import chart, thinned
from groupwise.report.page import render, written
from groupwise.report.prompts import answer_score
from groupwise.report.record import RunRecord
from groupwise.train.run_folder import write_text

_WON = 12  # prompts that are listed for each pair of runs and side


@dataclass(frozen=True, slots=True)
class Duel:
    """Two runs on the prompts that both answered; `difference` is second minus first, None without such prompts."""

    first: str
    second: str
    difference: Figure | None
    won_by_first: Sequence[str]
    won_by_second: Sequence[str]

    @property
    def words(self) -> str:
        """Who is better, in words."""
        if self.difference is None:
            return f"{self.first} and {self.second} share no judged held-out prompts"
        d = self.difference
        interval = f"{d.value:+.3g} (95 % interval {d.low:.3g} to {d.high:.3g}, {d.n} prompts)"
        if d.low <= 0 <= d.high:
            return f"no significant difference between {self.second} and {self.first}: {interval}"
        better, worse = (self.second, self.first) if d.value > 0 else (self.first, self.second)
        return f"{better} is better than {worse}: {interval}, counted as {self.second} minus {self.first}"


def write_comparison(records: Sequence[RunRecord], path: Path) -> Path:
    """Write the page and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, comparison_page(records))
    return path


def comparison_page(records: Sequence[RunRecord]) -> str:
    """The page; runs are named by their folders."""
    names = run_names(records)
    first = records[0].method
    charts = {question: _overlaid(question, records, names) for question in first.questions}
    return render(
        "compare.html.j2",
        {"charts": charts, "path": None, "ways": None, "transcripts": [], "frontier": _frontier(records, names)},
        names=names,
        method=first,
        records=records,
        duels=duels(records, names),
        settings=changed_settings(records),
        questions=[question for question, drawn in charts.items() if drawn],
        figures=_figures(records),
    )


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """Names of the folders; with their parents where two are called alike."""
    names = [record.name for record in records]
    return [
        name if names.count(name) == 1 else str(record.folder.path) for name, record in zip(names, records, strict=True)
    ]


def changed_settings(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all runs, with every run's value."""
    tables = [{one.key: one.value for one in settings(record.config)} for record in records]
    keys = dict.fromkeys(key for table in tables for key in table)
    found = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def duels(records: Sequence[RunRecord], names: Sequence[str]) -> list[Duel]:
    """Every later run against every earlier one."""
    return [
        duel(records[i].samples, records[j].samples, names[i], names[j])
        for i in range(len(records))
        for j in range(i + 1, len(records))
    ]


def duel(one: Sequence[PromptSamples], other: Sequence[PromptSamples], first: str, second: str) -> Duel:
    """Two runs' answers after training, prompt by prompt: the share that is right, or the mean score."""
    scores = [{prompt.prompt: answer_score(prompt.after) for prompt in samples} for samples in (one, other)]
    shared: dict[str, tuple[float, float]] = {}
    for prompt, score in scores[0].items():
        against = scores[1].get(prompt)
        if score is not None and against is not None:
            shared[prompt] = (score, against)
    if not shared:
        return Duel(first, second, None, (), ())
    order = sorted(shared, key=lambda prompt: shared[prompt][1] - shared[prompt][0])
    return Duel(
        first,
        second,
        paired_difference([a for a, _ in shared.values()], [b for _, b in shared.values()]),
        [prompt for prompt in order[:_WON] if shared[prompt][1] < shared[prompt][0]],
        [prompt for prompt in order[::-1][:_WON] if shared[prompt][1] > shared[prompt][0]],
    )


def _overlaid(question: str, records: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    """One chart per metric, one line per run."""
    found: list[dict[str, Any]] = []
    for panel in records[0].method.questions[question]:
        for label, metric in panel.lines.items():
            lines = {name: column(record, metric) for name, record in zip(names, records, strict=True)}
            steps = sorted({step for line in lines.values() for step in line})
            if not steps:
                continue
            rows = [
                {"step": float(step), **{name: line[step] for name, line in lines.items() if step in line}}
                for step in steps
            ]
            titled = panel.title if len(panel.lines) == 1 else f"{panel.title}: {label}"
            drawn = chart(
                type(panel)(
                    title=titled, y_label=panel.y_label, lines={name: name for name in names}, limits=panel.limits
                ),
                *thinned(rows),
            )
            if drawn is not None:
                found.append(drawn)
    return found


def column(record: RunRecord, metric: str) -> dict[int, float]:
    """A metric by step, of held-out data where it is measured there."""
    held_out = {int(row["step"]): row[f"eval/{metric}"] for row in record.rows if f"eval/{metric}" in row}
    return held_out or {int(row["step"]): row[metric] for row in record.rows if metric in row}


def _figures(records: Sequence[RunRecord]) -> list[tuple[str, list[dict[str, str] | None]]]:
    """Every labelled figure after training, run by run; None where a run has not ended or does not measure it."""
    method = records[0].method
    after = [(record.summary or {}).get("after", {}) for record in records]
    return [
        (label, [written(own[name], name in method.shares) if name in own else None for own in after])
        for name, label in method.labels.items()
        if any(name in own for own in after)
    ]


def _frontier(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any] | None:
    """Gain against KL of every finished run: the frontier of the paper's Figure 2."""
    method = records[0].method
    after = [(record.summary or {}).get("after", {}) for record in records]
    decides = next((name for name in method.decides if all(name in own for own in after)), None)
    if decides is None or not all(method.cost in own for own in after):
        return None
    points = [
        {"name": name, "cost": own[method.cost]["value"], "gain": own[decides]["value"]}
        for name, own in zip(names, after, strict=True)
    ]
    return {"points": points, "gain": method.labels[decides], "cost": method.labels[method.cost]}
