"""Rebuild a run's report from its files, or compare several runs on one page.

    python scripts/report.py runs/dpo-reviews
    python scripts/report.py runs/beta-0.1 runs/beta-0.5 --out comparison.html

Knows which programs there are, and nothing about pages.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

import dpo.report
import grpo.report
from groupwise.errors import UserError, exit_with_user_errors, listed
from groupwise.report.compare import write_comparison
from groupwise.report.page import write_report
from groupwise.report.record import RunRecord


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
    """A run of either method: only group-relative ones have a rollout."""
    config = path / "config.yaml"
    if not config.is_file():
        raise UserError(f"{config}: is missing, so {path} is no run's folder")
    try:
        keys = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{config}: cannot be read: {error}") from error
    return (grpo.report if isinstance(keys, dict) and "rollout" in keys else dpo.report).read(path)


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
