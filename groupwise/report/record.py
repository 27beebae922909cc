"""Everything that a run has written so far, read back. Knows no method, and nothing about pages.

A run that is still going on has no summary and no samples yet; everything else is there as far as it got.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise.config import Section
from groupwise.errors import UserError
from groupwise.observe.alarms import Alarm, Alarms
from groupwise.observe.heldout import Evaluated, read_heldout
from groupwise.observe.metrics import read_metrics
from groupwise.observe.samples import PromptSamples, read_samples
from groupwise.report.method import Method
from groupwise.report.transcripts import Transcripts, spread_transcripts
from groupwise.sections import AlarmsSection
from groupwise.train.run_folder import RunFolder

MOST_TRANSCRIPT_BYTES = 3_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run, as far as it got."""

    folder: RunFolder
    method: Method
    config: Section
    rows: Sequence[dict[str, float]]
    evaluations: Sequence[Evaluated]
    samples: Sequence[PromptSamples]
    transcripts: Transcripts
    summary: dict[str, Any] | None
    alarms: Sequence[Alarm]

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def steps(self) -> int:
        """Steps that are in the metrics."""
        return int(self.rows[-1]["step"]) if self.rows else 0


def read_run(folder: RunFolder, method: Method, config: Section, alarms: AlarmsSection) -> RunRecord:
    """All files of a run. Raises UserError for a folder without metrics, and for files that are no longer whole."""
    if not folder.metrics.is_file():
        raise UserError(f"{folder.metrics}: is missing, so there is nothing to report of {folder.path} yet")
    rows = read_metrics(folder.metrics)
    watch = Alarms(alarms, method.watched)
    for row in rows:
        watch.look(row)
    return RunRecord(
        folder=folder,
        method=method,
        config=config,
        rows=rows,
        evaluations=read_heldout(folder.heldout),
        samples=read_samples(folder.samples),
        transcripts=spread_transcripts(folder.transcripts, most_bytes=MOST_TRANSCRIPT_BYTES),
        summary=_summary(folder.summary),
        alarms=tuple(watch.raised),
    )


def _summary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    remedy = "dpo/eval.py or grpo/eval.py on the run writes it again"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}; {remedy}") from error
    if missing := [name for name in ("verdict", "before", "after") if name not in summary]:
        raise UserError(f"{path}: holds no {' and no '.join(missing)}; {remedy}")
    return summary
