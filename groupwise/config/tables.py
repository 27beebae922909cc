"""A schema as tables for people, one a section: flag, meaning, type and default.

Does not know where tables are shown.
"""

import dataclasses
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from groupwise.config.dialect import flow
from groupwise.config.keys import every_key
from groupwise.config.section import Section


@dataclasses.dataclass
class KeyTable:
    """The keys of one section: flag -> (what it means, type and default)."""

    title: str
    about: str = ""
    rows: dict[str, tuple[str, str]] = dataclasses.field(default_factory=lambda: {})  # flag -> description, facts


def key_tables(schema: type[Section]) -> list[KeyTable]:
    """Every key of a configuration, section by section, as `--help` tells them."""
    tables: dict[tuple[str, ...], KeyTable] = {(): KeyTable("keys outside any section")}
    for key in every_key(schema):
        if key.field is None:
            continue
        about = " ".join((key.field.description or "").split())
        name = ".".join(key.path).replace("*", "NAME").replace(".#", "[]")
        if key.is_section:
            about = about or _about(key.field.annotation)
            tables[key.path] = KeyTable(name, f"{about}{_how_to_switch(name, key.field)}".strip())
            continue
        home = next(key.path[:n] for n in range(len(key.path) - 1, -1, -1) if key.path[:n] in tables)
        flag = name if "#" in key.path else f"--{name}"  # a part of a list has no flag of its own
        facts = _type_and_default(key.field)
        if flag in tables[home].rows:  # a key of several kinds of one section
            facts = f"{tables[home].rows[flag][1]}; or {facts}"
        tables[home].rows[flag] = (about, facts)
    return [table for table in tables.values() if table.rows]


def _about(annotation: Any) -> str:
    """What the docstring of a section's class says first."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section) and kind.__doc__:
            return " ".join(kind.__doc__.split("\n\n")[0].split())
    return ""


def _how_to_switch(name: str, section: FieldInfo) -> str:
    """How a section that may be null is switched on or off."""
    if not _is_optional(section.annotation):
        return ""
    off_now = section.default is None
    return " (off by default; setting a key switches it on)" if off_now else f" (--{name} null switches it off)"


def _is_optional(annotation: Any) -> bool:
    return NoneType in get_args(annotation)


def _type_and_default(field: FieldInfo) -> str:
    kind = _type_name(field.annotation, _limits(field.metadata))
    if field.is_required():
        return f"{kind}, required"
    default = field.get_default(call_default_factory=True)
    return f"{kind}, default {flow(to_jsonable_python(default))}"


def _limits(metadata: Iterable[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    pairs = ((item, name) for item in metadata for name in signs if hasattr(item, name))
    return " and".join(f" {signs[name]} {getattr(item, name):g}" for item, name in pairs)


def _type_name(annotation: Any, limits: str = "") -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " | ".join(_type_name(part, limits) for part in parts)
    if origin is Annotated:
        inner = [item for part in parts[1:] for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return _type_name(parts[0], limits + _limits(inner))
    if origin in (list, tuple):
        return f"list of {_type_name(parts[0])}"
    if origin is dict:
        return f"mapping of {_type_name(parts[0])} to {_type_name(parts[1])}"
    if annotation in (int, float):
        return annotation.__name__ + limits
    names: dict[Any, str] = {bool: "true | false", str: "text", NoneType: "null", object: "anything"}
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return "section" if is_section else names.get(annotation, str(annotation))
