"""Token lengths as a histogram for the terminal. Knows nothing about what is measured."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

_BINS = 10
_BAR = 32


def histogram(lengths: Sequence[int], title: str, *, console: Console) -> Text:
    """Bars of how many lengths lie in each of at most ten equally wide ranges; widths of bars are shares of the most.

    >>> print(histogram([3, 4, 4, 9], "tokens", console=Console(force_terminal=False)).plain)
    tokens: 3 to 9, half up to 4
         3 |################                 1
         4 |################################ 2
         5 |                                 0
         6 |                                 0
         7 |                                 0
         8 |                                 0
         9 |################                 1
    """
    ordered = sorted(lengths)
    low, high = ordered[0], ordered[-1]
    width = max(1, -(-(high - low + 1) // _BINS))
    counts = [0] * (-(-(high - low + 1) // width))
    for length in ordered:
        counts[(length - low) // width] += 1
    block = "█" if console.is_terminal and not console.options.ascii_only else "#"
    lines = [f"{title}: {low} to {high}, half up to {ordered[(len(ordered) - 1) // 2]}"]
    for index, count in enumerate(counts):
        first = low + index * width
        label = str(first) if width == 1 else f"{first}-{first + width - 1}"
        bar = block * (max(1, round(count / max(counts) * _BAR)) if count else 0)
        lines.append(f"{label:>6} |{bar:<{_BAR}} {count}")
    return Text("\n".join(lines))
