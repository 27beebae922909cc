"""YAML as configurations are written in it: which plain words are numbers, truth, nothing or text.

Reading goes by the core schema of YAML 1.2: `1e-6` is a number, and `yes`, `no`, `on`, `off` are text. What is written
means the same to readers of YAML 1.1. Knows no schema and no file.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import yaml
from yaml.composer import ComposerError


class Loader(yaml.SafeLoader):
    """Resolves plain scalars by the core schema of YAML 1.2 and refuses aliases."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are not allowed; write the value out", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for something other than text, so any reader gets the same values."""


_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    # No leading zeros: 010 is 8 in YAML 1.1 and 10 in YAML 1.2. Thirty digits are more than any number here needs.
    "int": (r"[-+]?(0|[1-9][0-9]{0,30})", [*"-+0123456789"]),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}
for _tag, (_pattern, _first) in _RESOLVERS.items():
    for _class in (Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _str_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    one_line = text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if one_line else '"')


_Dumper.add_representer(str, _str_node)


def _to_float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))


SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: {"true": True, "false": False}[text.lower()],
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": _to_float,
    "tag:yaml.org,2002:str": str,
}


def reads_as(text: str, kind: Literal["null", "bool", "int", "float"]) -> bool:
    """Whether a text without quotes is a scalar of this kind."""
    return re.fullmatch(_RESOLVERS[kind][0], text) is not None


def flow(value: Any) -> str:
    """One line of YAML for a plain value, its flow style."""
    # A scalar alone at the top of a document would be followed by an end marker, and in a list commas need quotes.
    line = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return line.strip()[1:-1]


def shown(value: Any) -> str:
    """A value as an error quotes it."""
    text = "nothing (null)" if value is None else repr(value) if isinstance(value, str) else flow(value)
    return text if len(text) <= 60 else text[:57] + "..."


def colon_hint(value: Any) -> str:
    """The remedy, with its semicolon, where `key:value` was taken for a text."""
    return "; a space must follow the colon" if isinstance(value, str) and ":" in value else ""
