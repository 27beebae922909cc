"""What became of every row of the data, in numbers and in sentences. Knows nothing of how they are counted."""

from dataclasses import dataclass

from dpo.dataset_figures import Quantiles
from dpo.formats import Format, described


class DropReason:
    """Why a row gave no group; the names stand in the report."""

    BAD_ROW = "bad row"
    PROMPT_TOO_LONG = "prompt too long"
    COMPLETION_TOO_LONG = "completion too long"
    IDENTICAL = "completions identical"
    NO_SIGNAL = "no signal: all scores equal"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What became of every row. `rows_read` is `groups_used` plus the sum of `dropped`."""

    formats: dict[str, Format]
    """The format of each source."""
    ignored_columns: tuple[str, ...]
    rows_read: int
    groups_used: int
    pairs_used: int
    """Ordered pairs (better, worse) in all groups."""
    desirable: int
    """Labelled completions that are desirable; 0 where the data holds pairs or rankings."""
    undesirable: int
    dropped: dict[str, int]
    """Rows that gave no group, by reason (DropReason)."""
    bad_row_examples: tuple[str, ...]
    completions_too_long: int
    """Completions dropped by their length, also out of groups that are used without them."""
    completions_identical: int
    """Completions dropped because another of the group has the same ids and a different score."""
    completions_cut: int
    """Used completions that were cut to the maximum length and are unfinished."""
    further_turns: int
    """Rows whose transcripts part before the last turn, so that a completion holds more than one turn."""
    repeated_prompts: int
    """Used groups in which every completion begins with the text of the prompt."""
    duplicate_groups: int
    """Used groups whose prompt, completions and scores an earlier group has too."""
    contradictory_pairs: int
    """Pairs of completions of one prompt that stand in the data in both orders."""
    prompt_tokens: Quantiles
    completion_tokens: Quantiles
    longer_wins: float
    """Probability that the better completion of a pair is the longer one, ties counted half; 0.5 says nothing."""

    def lines(self) -> list[str]:
        """The report for a terminal; a line that begins with "warning:" deserves a look."""
        lines = [f"{source}: {described(kind)}" for source, kind in self.formats.items()]
        if self.ignored_columns:
            lines.append(f"columns not used: {', '.join(self.ignored_columns)}")
        lines.append(f"{self.rows_read} rows read, {self.groups_used} groups used, {self._signal}")
        for reason, count in self.dropped.items():
            lines.append(f"{count} rows dropped, {reason}")
            if reason == DropReason.BAD_ROW:
                lines += [f"  {problem}" for problem in self.bad_row_examples]
        lines += [
            f"tokens per prompt: {_length_line(self.prompt_tokens)}",
            f"tokens per completion: {_length_line(self.completion_tokens)}",
            f"the better completion is the longer one in {self.longer_wins:.1%} of pairs (50 %: length tells nothing)",
        ]
        notes = {
            "completions too long and dropped": self.completions_too_long,
            "completions dropped, the same ids as another of the group with another score": self.completions_identical,
            "completions cut to the maximum length, unfinished": self.completions_cut,
            "rows whose transcripts part before the last turn, so that completions hold several": self.further_turns,
            "groups stand in the data more than once": self.duplicate_groups,
        }
        lines += [f"{count} {what}" for what, count in notes.items() if count]
        if self.repeated_prompts:
            lines.append(
                f"warning: in {self.repeated_prompts} groups every completion begins with the prompt, which then "
                "stands there twice"
            )
        if self.contradictory_pairs:
            twice = "completions have both labels" if self.labelled else "pairs stand in the data in both orders"
            lines.append(f"warning: {self.contradictory_pairs} {twice}")
        if abs(self.longer_wins - 0.5) > 0.15:
            winner = "longer" if self.longer_wins > 0.5 else "shorter"
            lines.append(f"warning: the {winner} completion mostly wins, the model may learn length instead of quality")
        return lines

    @property
    def labelled(self) -> bool:
        """Whether the groups are single completions, labelled desirable or not."""
        return "labelled" in self.formats.values()

    @property
    def _signal(self) -> str:
        if self.labelled:
            return f"{self.desirable} desirable and {self.undesirable} undesirable completions"
        return f"{self.pairs_used} pairs of better and worse"

    def as_dict(self) -> dict[str, object]:
        """The report for summary.json: plain numbers, texts, lists and objects."""
        return {
            "formats": dict(self.formats),
            "ignored_columns": list(self.ignored_columns),
            "rows_read": self.rows_read,
            "groups_used": self.groups_used,
            "pairs_used": self.pairs_used,
            "desirable": self.desirable,
            "undesirable": self.undesirable,
            "dropped": dict(self.dropped),
            "bad_row_examples": list(self.bad_row_examples),
            "completions_too_long": self.completions_too_long,
            "completions_identical": self.completions_identical,
            "completions_cut": self.completions_cut,
            "further_turns": self.further_turns,
            "repeated_prompts": self.repeated_prompts,
            "duplicate_groups": self.duplicate_groups,
            "contradictory_pairs": self.contradictory_pairs,
            "prompt_tokens": self.prompt_tokens._asdict(),
            "completion_tokens": self.completion_tokens._asdict(),
            "longer_wins": self.longer_wins,
        }


def _length_line(lengths: Quantiles) -> str:
    return f"{lengths.least} to {lengths.most}, half up to {lengths.median}, 95 % up to {lengths.p95}"
