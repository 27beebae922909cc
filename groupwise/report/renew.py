"""The report of a run that is going on, or has just ended. Knows when to write it, not what is in it."""

from collections.abc import Callable

from groupwise.report.page import write_report
from groupwise.report.record import RunRecord
from groupwise.sections import RunSection


def renew_report(section: RunSection, read: Callable[[], RunRecord], say: Callable[[str], None]) -> None:
    """Write the report anew where the run wants one. What goes wrong is a line: no week of training ends for a page."""
    if not section.report:
        return
    try:
        write_report(read())
    except Exception as error:
        say(f"warning: the report could not be written: {type(error).__name__}: {error}; scripts/report.py tries again")
