"""Write the tables of configuration keys into dpo/README.md and grpo/README.md, from the schemas themselves.

    python scripts/write_config_tables.py

A test fails while a README does not hold what this program would write. Knows no key by name.
"""

from pathlib import Path

from dpo.config import DpoConfig
from groupwise.config import Section, key_tables
from grpo.config import GrpoConfig

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- keys: scripts/write_config_tables.py -->", "<!-- end of keys -->"
READMES: dict[str, type[Section]] = {"dpo/README.md": DpoConfig, "grpo/README.md": GrpoConfig}


def with_tables(text: str, schema: type[Section]) -> str:
    """The text of a README with the tables between its two marks renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(schema)}{END}{after}"


def tables(schema: type[Section]) -> str:
    """One Markdown table per section."""
    parts: list[str] = []
    for table in key_tables(schema):
        about = f": {table.about}" if table.about else ""
        rows = [
            f"| `{flag.removeprefix('--')}` | {_cell(facts)} | {_cell(meaning)} |"
            for flag, (meaning, facts) in table.rows.items()
        ]
        head = [f"**{table.title}**{about}", "", "| key | type and default | meaning |", "|---|---|---|"]
        parts.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace(" | ", " or ").replace("|", "\\|")


def main() -> None:
    for name, schema in READMES.items():
        path = ROOT / name
        path.write_text(with_tables(path.read_text(encoding="utf-8"), schema), encoding="utf-8")


if __name__ == "__main__":
    main()
