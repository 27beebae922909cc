"""What the documents promise exists: every configuration key is explained, every file they link to is there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo.config import DpoConfig
from groupwise.config import Section

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/recipes/*.md")]


def keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        parts: list[Any] = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [part for part in parts if _is_section(part)]
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_section(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, Section)


def test_every_dpo_key_is_in_its_readme() -> None:
    text = (ROOT / "dpo/README.md").read_text()
    missing = [key for key in keys(DpoConfig) if f"| `{key}` |" not in text]
    assert missing == []
    named = set(re.findall(r"^\| `([a-z_.]+)` \| .+ \| .+ \|$", text.split("## How to read")[0], flags=re.M))
    assert named - set(keys(DpoConfig)) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
