"""The before/after table marks only what the intervals separate, and shows labels as they are."""

import io

import pytest
from rich.console import Console

from groupwise.observe.statistics import Figure
from groupwise.observe.table import before_after_table, separated


def _shown(before: dict[str, Figure], after: dict[str, Figure], labels: dict[str, str]) -> list[str]:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(before_after_table(before, after, labels))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def _row(lines: list[str], label: str) -> str:
    return next(line for line in lines if label in line)


def test_values_intervals_change_and_mark() -> None:
    before = {"correct": Figure(0.354, 0.301, 0.412, 256), "length": Figure(20.0, 15.0, 25.0, 256)}
    after = {"correct": Figure(0.612, 0.551, 0.670, 256), "length": Figure(24.0, 19.0, 29.0, 200)}
    lines = _shown(before, after, {"correct": "correct answers [share]", "length": "length, tokens"})
    correct, length = _row(lines, "correct answers"), _row(lines, "length, tokens")
    for text in ("correct answers [share]", "0.354 [0.301, 0.412]", "0.612 [0.551, 0.670]", "+0.258", "256"):
        assert text in correct
    assert "*" in correct and "*" not in length
    assert "256 / 200" in length and "+4.0" in length


@pytest.mark.parametrize(
    ("before", "after", "apart"),
    [
        (Figure(1, 0, 2, 9), Figure(4, 3, 5, 9), True),
        (Figure(4, 3, 5, 9), Figure(1, 0, 2, 9), True),
        (Figure(1, 0, 2, 9), Figure(3, 2, 4, 9), False),
        (Figure(1, 0, 5, 9), Figure(3, 2, 4, 9), False),
    ],
)
def test_separated_means_no_common_point(before: Figure, after: Figure, apart: bool) -> None:
    assert separated(before, after) is apart


def test_one_item_proves_nothing() -> None:
    """The bootstrap interval of one value has no width; without this rule every such change would be marked."""
    assert not separated(Figure(1, 1, 1, 1), Figure(2, 2, 2, 1))


def test_labels_decide_the_rows_and_missing_figures_are_named() -> None:
    figures = {"a": Figure(1, 0, 2, 9), "b": Figure(1, 0, 2, 9)}
    assert not any(cell.strip() == "b" for line in _shown(figures, figures, {"a": "A"}) for cell in line.split("│"))
    with pytest.raises(ValueError, match="for: c, d$"):
        before_after_table(figures, figures, {"a": "A", "c": "C", "d": "D"})


@pytest.mark.parametrize("value", [0.0, 1e-7, 123456.0])
def test_figures_of_no_width_are_shown(value: float) -> None:
    figure = {"x": Figure(value, value, value, 5)}
    assert "[" in _row(_shown(figure, figure, {"x": "label"}), "label")


def test_label_is_text_and_not_markup() -> None:
    figure = {"x": Figure(1, 0, 2, 5)}
    assert "[/red] [bold]" in "\n".join(_shown(figure, figure, {"x": "[/red] [bold]"}))
