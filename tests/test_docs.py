"""What the documents promise exists: every configuration key is explained, every file they link to is there."""

import re
from pathlib import Path

import pytest

from scripts.write_config_tables import BEGIN, END, READMES, with_tables

ROOT = Path(__file__).parent.parent
PATTERNS = ("*.md", "[!.]*/README.md", "docs/**/*.md", "configs/**/*.md")
DOCUMENTS = sorted({page for pattern in PATTERNS for page in ROOT.glob(pattern)})


@pytest.mark.parametrize("name", sorted(READMES))
def test_the_tables_of_keys_are_those_of_the_schema(name: str) -> None:
    text = (ROOT / name).read_text()
    assert BEGIN in text and END in text
    assert with_tables(text, READMES[name]) == text, "run python scripts/write_config_tables.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_test_that_the_documentation_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    sources = [file.read_text() for file in (ROOT / "tests").rglob("*.py")]
    there = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    assert len(named) > 15
    assert named <= there, named - there
