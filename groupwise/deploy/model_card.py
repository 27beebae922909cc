"""The README.md of an exported model: what it is, how it came about, what it measured. Knows no method and no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from huggingface_hub import ModelCardData

from groupwise.errors import printable
from groupwise.observe.statistics import Figure
from groupwise.observe.versions import versions
from groupwise.train.summary import Figures

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the card says beyond the run's summary.

    title        of the model
    base_model   hub id where it is known, otherwise the folder's name
    method       in words, with the paper
    config       the run's configuration as YAML
    labels       names of figures -> what the table calls them
    before, after  the run's held-out figures
    proof        lines that say how the exported weights were checked
    licences     of the model and of the data; `UNKNOWN` where nobody said
    """

    title: str
    base_model: str
    method: str
    tags: tuple[str, ...]
    config: str
    labels: Mapping[str, str]
    before: Figures
    after: Figures
    proof: Sequence[str]
    model_licence: str
    data_licence: str


def model_card(card: Card, summary: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter as the hub reads it."""
    hashes = cast(Mapping[str, str | None], summary["hashes"]["data"])
    on_the_hub = [source.partition(":")[0] for source, digest in hashes.items() if digest is None]
    head = ModelCardData(
        base_model=card.base_model,
        base_model_relation="finetune",
        library_name="transformers",
        pipeline_tag="text-generation",
        license=card.model_licence,
        datasets=on_the_hub or None,
        tags=list(card.tags),
        data_license=card.data_licence,
    ).to_yaml()
    sections = [
        f"# {card.title}",
        f"{card.method}, from the base model `{card.base_model}` "
        f"({summary['steps']} steps, {summary['tokens']} tokens, seed {summary['seeds']['run']}). Weights of base and "
        "update are merged; any program that loads the base loads this.",
        f"Licence of this model: {card.model_licence}. Licence of the training data: {card.data_licence}."
        + (
            " Unknown means that nobody said; ask before you pass it on."
            if UNKNOWN in (card.model_licence, card.data_licence)
            else ""
        ),
        "## Before and after",
        "Held-out data; in brackets 95 % intervals; n is the number of prompts or groups.",
        "\n".join(_table(card)),
        "## Check of the merged weights",
        "\n".join(f"- {line}" for line in card.proof),
        "## Data",
        "\n".join(
            f"- `{source}`: " + (f"SHA-256 `{digest}`" if digest else "from the hub")
            for source, digest in hashes.items()
        ),
        f"Base model as loaded, SHA-256: `{summary['hashes']['base_model']}`",
        "## Versions",
        _listed("trained with", cast(Mapping[str, str], summary["versions"])),
        _listed("exported with", versions()),
        "## Configuration",
        f"~~~~yaml\n{card.config.rstrip()}\n~~~~",
    ]
    return f"---\n{head.strip()}\n---\n\n" + printable("\n\n".join(sections)) + "\n"


def _table(card: Card) -> list[str]:
    rows = ["| figure | before | after | n |", "|---|---|---|---|"]
    for name, label in card.labels.items():
        if name in card.before and name in card.after:
            before, after = card.before[name], card.after[name]
            counts = str(before.n) if before.n == after.n else f"{before.n} / {after.n}"
            rows.append(f"| {label} | {_shown(before)} | {_shown(after)} | {counts} |")
    return rows


def _shown(figure: Figure) -> str:
    return f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]"


def _listed(what: str, found: Mapping[str, str]) -> str:
    return f"{what}: " + ", ".join(f"{name} {version}" for name, version in found.items())
