"""A run's record as one HTML file that needs nothing else. Knows how pages are made, not what a figure means.

Completions are hostile text: the template escapes everything, data for the script travels as JSON in which no tag can
close, and a Content-Security-Policy lets nothing run but the script whose hash it names, and nothing be fetched.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from groupwise.report.curves import chart, thinned
from groupwise.report.facts import facts
from groupwise.report.prompts import WAYS, Ways, compared, ways
from groupwise.report.record import RunRecord
from groupwise.train.run_folder import write_text

_NOTHING_ELSE = "base-uri 'none'; form-action 'none'"
_ASSETS = Path(__file__).parent / "assets"


def write_report(record: RunRecord) -> Path:
    """Write `report.html` into the run's folder, in the place of the one before, and return its path."""
    write_text(record.folder.report, report_page(record))
    return record.folder.report


def report_page(record: RunRecord) -> str:
    """The page of one run."""
    found = ways(record)
    shown, selection = compared(record)
    points, width = thinned(record.rows)
    charts = {
        question: [drawn for panel in panels if (drawn := chart(panel, points, width)) is not None]
        for question, panels in record.method.questions.items()
    }
    data = {
        "charts": charts,
        "path": _path(record),
        "ways": None if found is None else _ways_data(found),
        "transcripts": _by_step(record.transcripts.groups),
    }
    return render(
        "report.html.j2",
        data,
        record=record,
        method=record.method,
        verdict=_verdict(record),
        figures=_figures(record),
        questions=[(question, drawn) for question, drawn in charts.items() if drawn],
        ways=found,
        meanings=WAYS,
        compared=shown,
        selection=selection,
        facts=facts(record),
    )


def render(template: str, data: Mapping[str, Any], **context: Any) -> str:
    """A page of a template; `data` is for its script, `context` for the template."""
    loader = FileSystemLoader(_ASSETS)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in ("uPlot.iife.min.js", "report.js"))
    style = "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in ("uPlot.min.css", "report.css"))
    return environment.get_template(template).render(
        policy=f"default-src 'none'; script-src '{_source(script)}'; style-src '{_source(style)}'; {_NOTHING_ELSE}",
        script=Markup(script),  # noqa: S704 - our own file
        style=Markup(style),  # noqa: S704
        data=Markup(_json(data)),  # noqa: S704 - no < or & is left in it
        percent=percent,
        number=number,
        **context,
    )


def _source(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style: the browser hashes what lies between the tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that is safe between script tags: <, > and & are written as escapes, as are the line ends of JavaScript."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _verdict(record: RunRecord) -> tuple[str, str]:
    """Kind and sentence: the summary's, or where a run without one stands."""
    if record.summary is not None:
        return record.summary["verdict"]["kind"], record.summary["verdict"]["text"]
    offenders = sorted(record.folder.not_finite.glob("*.jsonl")) if record.folder.not_finite.is_dir() else []
    if offenders:
        return "loss", (
            f"Not finished: at step {record.steps} of the metrics something was not finite; the groups are in "
            f"{offenders[-1].name}."
        )
    return "running", f"Not finished: {record.steps} steps are done. What follows is how far it has come."


def _figures(record: RunRecord) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Label, before and after of every figure that has a label."""
    if record.summary is None:
        return []
    before, after = record.summary["before"], record.summary["after"]
    return [
        (label, written(before[name], share), written(after[name], share))
        for name, label in record.method.labels.items()
        if name in before
        for share in (name in record.method.shares,)
    ]


def written(figure: Mapping[str, float], share: bool) -> dict[str, str]:
    """A figure of summary.json as text: value, the ends of its interval, and what it is of."""
    shown = percent if share else number
    return {"n": str(int(figure["n"])), **{name: shown(figure[name]) for name in ("value", "low", "high")}}


def _path(record: RunRecord) -> dict[str, Any] | None:
    """Gain against cost inside the run, step by step, and its two ends as they were measured."""
    method = record.method
    points: list[list[float]] = []
    if method.path is not None:
        cost, gain = method.path
        points = [[row[cost], row[gain], row["step"]] for row in record.rows if cost in row and gain in row]
    if len(points) < 2:
        return None
    return {"points": points[:: -(-len(points) // 1000)], "names": list(method.path or ())}


def _ways_data(found: Ways) -> dict[str, Any]:
    return {
        "steps": list(found.steps),
        "rows": [{"key": one.key, "way": one.way, "values": list(one.values)} for one in found.prompts],
    }


def _by_step(groups: Any) -> list[dict[str, Any]]:
    steps: dict[int, list[dict[str, Any]]] = {}
    for group in groups:
        steps.setdefault(int(group["step"]), []).append({name: v for name, v in group.items() if name != "step"})
    return [{"step": step, "groups": own} for step, own in steps.items()]


def percent(value: float) -> str:
    """A share, shown."""
    return f"{100 * value:.3g} %"


def number(value: float | None) -> str:
    """A number, shown; a dash for none."""
    return "–" if value is None else f"{value:.4g}"
