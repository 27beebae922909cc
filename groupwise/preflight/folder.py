"""May the run be where the configuration puts it, and is there room? Reads only. Knows nothing about training."""

import os
from pathlib import Path

from groupwise.config import Section
from groupwise.model.policy import Policy
from groupwise.preflight.report import Report
from groupwise.sections import RunSection
from groupwise.train.checkpoint_keeper import check_space, size_text
from groupwise.train.run_folder import RunFolder

_SAYS = {
    "new": "is new",
    "started": "holds a run that was stopped; training continues from its newest checkpoint",
}


def check_folder(config: Section, section: RunSection, report: Report) -> None:
    """New, continued or finished, and whether it may be written. Raises UserError where a run would."""
    folder = RunFolder.of(section)
    state, notes = folder.state(config, resume=section.resume)
    report.notes(notes)
    if state == "finished":
        report.warning(f"{folder.path} is finished: training would only show it; a new run needs another --run.name")
    else:
        report.ok(f"{folder.path} {_SAYS[state]}")
    place = _nearest_folder(folder.path)
    if not os.access(place, os.W_OK):
        report.error(f"{place}: may not be written; choose another --run.folder")


def check_disk(policy: Policy, section: RunSection, report: Report) -> None:
    """Room for the checkpoints of the whole run. Raises UserError where there is not enough."""
    wanted, free = check_space(RunFolder.of(section).checkpoints, policy.trainable(), keep=section.keep_checkpoints)
    report.ok(f"disk: checkpoints take up to {size_text(wanted)}, {size_text(free)} are free")


def _nearest_folder(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())
