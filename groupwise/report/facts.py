"""What a run was made of and where its time went, as tables of plain text. Knows nothing about pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groupwise.config import Setting, settings
from groupwise.report.record import RunRecord

_PHASES = {
    "sampling": ("time/sample_s", "sampling.rows_at_once larger, or fewer sampling.max_new_tokens"),
    "scoring": ("time/score_s", "more scoring.workers"),
    "reference": ("time/reference_s", "loss.kl_coefficient 0, which needs no reference"),
    "forward pass": ("time/forward_s", "run.tokens_per_forward as large as memory allows, run.mixed_precision bf16"),
    "backward pass": ("time/backward_s", "run.tokens_per_forward as large as memory allows, no recomputation"),
    "evaluation": ("time/evaluate_s", "a larger eval.every, or fewer held-out prompts"),
}
_BY_SERVERS = "sampling.ahead 1, which samples while the step before learns, or more sampling.servers"

_MADE_OF = ("adapter_step", "seeds", "processes", "sharding", "attention", "hashes", "versions")


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds of one phase, and its part of all steps, 0 to 1."""

    name: str
    seconds: float
    part: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the time of the logged steps went; `advice` is the one change that would save most."""

    shares: Sequence[Share]
    seconds: float
    tokens: int
    advice: str


def ledger(rows: Sequence[Mapping[str, float]]) -> Ledger:
    """Sums over the logged steps; what no phase accounts for is "the rest".

    >>> found = ledger([{"step": 1, "time/step_s": 4.0, "time/sample_s": 3.0, "tokens/completion": 8.0}])
    >>> [(share.name, share.seconds, share.part) for share in found.shares], found.tokens
    ([('sampling', 3.0, 0.75), ('the rest', 1.0, 0.25)], 8)
    >>> ledger([{"step": 1, "time/step_s": 4.0, "time/sample_s": 3.0, "servers/up": 2.0}]).advice.partition(":")[2]
    ' sampling.ahead 1, which samples while the step before learns, or more sampling.servers'
    """
    total = sum(row.get("time/step_s", 0.0) for row in rows)
    tokens = int(sum(row.get("tokens/prompt", 0.0) + row.get("tokens/completion", 0.0) for row in rows))
    if total <= 0:
        return Ledger((), 0.0, tokens, "")
    seconds = {name: sum(row.get(key, 0.0) for row in rows) for name, (key, _) in _PHASES.items()}
    shares = [Share(name, own, own / total) for name, own in seconds.items() if own > 0]
    rest = total - sum(share.seconds for share in shares)
    largest = max(shares, key=lambda share: share.seconds, default=None)
    advice = ""
    if largest is not None:
        by_servers = largest.name == "sampling" and any("servers/up" in row for row in rows)
        remedy = _BY_SERVERS if by_servers else _PHASES[largest.name][1]
        advice = f"{largest.name} takes most, {100 * largest.part:.0f} % of the time: {remedy}"
    return Ledger([*shares, Share("the rest", max(0.0, rest), max(0.0, rest) / total)], total, tokens, advice)


@dataclass(frozen=True, slots=True)
class Facts:
    """Tables of (name, value); `configuration` says of every key whether it has its default."""

    data: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    configuration: Sequence[Setting]
    made_of: Sequence[tuple[str, str]]
    ledger: Ledger


def facts(record: RunRecord) -> Facts:
    """Everything about a run that is no figure; data and versions are known when it has ended."""
    summary = record.summary or {}
    return Facts(
        data=[(part, list(_flat(report))) for part, report in summary.get("data", {}).items()],
        configuration=settings(record.config),
        made_of=_flat({name: summary[name] for name in _MADE_OF if name in summary}),
        ledger=ledger(record.rows),
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Leaves with their path; what is empty or zero is left out."""
    found: list[tuple[str, str]] = []
    for name, own in value.items():
        label = prefix + (name if "/" in name else name.replace("_", " "))
        if isinstance(own, Mapping):
            found += _flat(own, f"{label}: ")
        elif own not in (0, [], (), None, ""):
            shown = ", ".join(map(str, own)) if isinstance(own, list) else _number(own)
            found.append((label, shown))
    return found


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
