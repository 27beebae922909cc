"""Counts that grow while rows become groups, and the report that they and the groups make in the end.

Does not decide which rows become groups.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from dpo.dataset_figures import (
    contradictions,
    doubly_labelled,
    duplicates,
    longer_wins,
    longer_wins_labelled,
    quantiles,
)
from dpo.dataset_report import DatasetReport, DropReason
from dpo.formats import FORMATS, Format
from groupwise.data.rows import Row
from groupwise.data.text import TextEncoder
from groupwise.errors import listed
from groupwise.groups import Group, count_pairs


@dataclass(slots=True)
class Tally:
    """What has become of the rows so far; `unused` are names of columns, in the order in which they were met."""

    formats: dict[str, Format] = field(default_factory=dict[str, Format])
    unused: dict[str, None] = field(default_factory=dict[str, None])
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    bad_row_examples: tuple[str, ...] = ()
    too_long: int = 0
    identical: int = 0
    further_turns: int = 0
    repeated_prompts: int = 0

    def note_unused_columns(self, rows: Sequence[Row], kind: Format, columns: Mapping[str, str | list[str]]) -> None:
        """Add the columns of these rows that neither the format nor the mapping reads."""
        paths = chain.from_iterable(
            [path] if isinstance(path, str) else path for path in (columns.get(name, name) for name in FORMATS[kind])
        )
        used = set(chain.from_iterable((path, path.partition(".")[0]) for path in paths))
        self.unused.update(dict.fromkeys(name for row in rows for name in row.values if name not in used))

    def note_bad_rows(self, problems: Sequence[str]) -> None:
        """Count the rows that are unusable, and keep the first for the report."""
        self.dropped[DropReason.BAD_ROW] = len(problems)
        self.bad_row_examples = tuple(listed(problems, most=3).splitlines())

    def nothing_left(self, encoder: TextEncoder) -> str:
        """Why no row became a group, with what would help."""
        counts = ", ".join(f"{count} dropped, {reason}" for reason, count in self.dropped.items())
        remedies: list[str] = []
        if self.dropped[DropReason.PROMPT_TOO_LONG]:
            remedies.append(f"raise max_prompt_tokens (now {encoder.max_prompt_tokens})")
        if self.dropped[DropReason.COMPLETION_TOO_LONG]:
            remedies.append(f"raise max_completion_tokens (now {encoder.max_completion_tokens}) or cut completions")
        if self.dropped[DropReason.IDENTICAL] or self.dropped[DropReason.NO_SIGNAL]:
            remedies.append("give completions that differ, with scores that differ")
        if self.dropped[DropReason.BAD_ROW]:
            remedies.append("mend the rows: " + "; ".join(self.bad_row_examples))
        return f"{', '.join(self.formats)}: of {self.rows_read} rows none is left ({counts}); {'; '.join(remedies)}"

    def report(self, groups: Sequence[Group]) -> DatasetReport:
        """The account of all rows; `groups` are those that are used, at least one."""
        completions = [completion for group in groups for completion in group.completions]
        labelled = "labelled" in self.formats.values()
        desirable = sum(completion.score > 0 for completion in completions) if labelled else 0
        return DatasetReport(
            formats=self.formats,
            ignored_columns=tuple(self.unused),
            rows_read=self.rows_read,
            groups_used=len(groups),
            pairs_used=sum(map(count_pairs, groups)),
            desirable=desirable,
            undesirable=len(completions) - desirable if labelled else 0,
            dropped=dict(self.dropped),
            bad_row_examples=self.bad_row_examples,
            completions_too_long=self.too_long,
            completions_identical=self.identical,
            completions_cut=sum(not completion.finished for completion in completions),
            further_turns=self.further_turns,
            repeated_prompts=self.repeated_prompts,
            duplicate_groups=duplicates(groups),
            contradictory_pairs=doubly_labelled(groups) if labelled else contradictions(groups),
            prompt_tokens=quantiles([len(group.prompt_ids) for group in groups]),
            completion_tokens=quantiles([len(completion.token_ids) for completion in completions]),
            longer_wins=longer_wins_labelled(completions) if labelled else longer_wins(groups),
        )
