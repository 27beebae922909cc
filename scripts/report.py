"""Rebuild a run's report from its files, or compare several runs on one page.

    python scripts/report.py runs/dpo-reviews
    python scripts/report.py runs/beta-0.1 runs/beta-0.5 --out comparison.html

Knows which programs there are, and nothing about pages.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import dpo.report
import grpo.report
from dpo.config import DpoConfig
from groupwise.config import load_matching_config
from groupwise.errors import UserError, exit_with_user_errors, listed
from groupwise.report.compare import write_comparison
from groupwise.report.page import write_report
from groupwise.report.record import RunRecord
from groupwise.train.run_folder import RunFolder
from grpo.config import GrpoConfig


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, such as runs/dpo-reviews")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="page that compares several runs")
    args = parser.parse_args(argv)
    records = [read_any(path) for path in args.runs]
    if len(records) == 1:
        print(f"report: {write_report(records[0])}")
        return
    names = [record.folder.path.resolve() for record in records]
    if len(set(names)) < len(names):
        raise UserError("the same run was named twice; name each one once")
    methods = {record.method.name for record in records}
    if len(methods) > 1:
        raise UserError(listed(["runs of different methods have no figures in common:", *map(str, args.runs)]))
    print(f"comparison: {write_comparison(records, args.out)}")


def read_any(path: Path) -> RunRecord:
    """A run of either method."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UserError(f"{folder.config}: is missing, so {path} is no run's folder")
    config = load_matching_config((DpoConfig, GrpoConfig), folder.config)
    return dpo.report.record(folder, config) if isinstance(config, DpoConfig) else grpo.report.record(folder, config)


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
