"""Can the files that a configuration names be read at all? Knows nothing about what their rows mean."""

from collections.abc import Sequence
from pathlib import Path

from groupwise.data.rows import read_rows
from groupwise.preflight.report import Report


def check_sources(sources: Sequence[str], report: Report) -> None:
    """Open every file and read its first row: all that can be said of data while there is no tokenizer."""
    with report.part("data"):
        for source in sources:
            if Path(source).suffix:
                with report.guard():
                    read_rows(source, limit=1)
                    report.ok(f"{source}: can be read")
        report.warning("nothing more was checked of the data, for its tokens are the model's")
