"""What `--help` prints: the program's own options, then every key of its configuration.

Knows the terminal's width, not how keys become tables.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from groupwise.config.section import Section
from groupwise.config.tables import KeyTable, key_tables

_WIDTH = 100  # columns at most: longer lines are hard to read


def print_help(
    schema: type[Section], default_path: Path, description: str, epilog: str, flags: Mapping[str, str]
) -> None:
    """Write the help to the terminal, as wide as that is, but no wider than is easy to read."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(60, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))
    console = Console(width=width, highlight=False, soft_wrap=False)
    tables = _help_tables(schema, default_path, flags)
    longest = max(len(flag) for table in tables for flag in table.rows)
    console.print(Text(f"usage: {Path(sys.argv[0]).name} [--config PATH] [--SECTION.KEY VALUE ...]", "bold"))
    console.print(Text(f"\n{description}\nValues are YAML, lists are written '[a, b]'; later flags win."))
    for table in tables:
        console.print(Text.assemble("\n", (table.title, "bold"), f"  {table.about}" if table.about else ""))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=min(longest + 2, width - 24), overflow="fold")
        grid.add_column(overflow="fold")
        for flag, (text, facts) in table.rows.items():
            lines = [(text, ""), (facts, "dim")]
            told = Text("\n").join(Text(line, style) for line, style in lines if line)
            grid.add_row(Text(f"  {flag}", "cyan"), told)
        console.print(grid)
    if epilog:
        console.print(Text(f"\n{epilog}"))


def _help_tables(schema: type[Section], default_path: Path, flags: Mapping[str, str]) -> list[KeyTable]:
    general = KeyTable("options")
    general.rows["--config PATH"] = ("Configuration file, YAML.", f"default {default_path}")
    general.rows["--print-config"] = ("Print the resolved configuration as YAML and stop.", "")
    general.rows["--help"] = ("Print this and stop.", "")
    general.rows.update({f"--{name}": (" ".join(text.split()), "") for name, text in flags.items()})
    return [general, *key_tables(schema)]
