"""What pydantic found wrong with plain values, in words: the rule that was broken, and the remedy.

Knows the schema, not where the values were written.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from groupwise.config.dialect import colon_hint, reads_as, shown
from groupwise.config.keys import KeyPath, dotted, every_key, find_key, is_section, nearest_key
from groupwise.config.section import Section
from groupwise.errors import nearest

_MUST = {
    "int": "be a whole number",
    "float": "be a number",
    "bool": "be true or false",
    "string": "be text",
    "finite": "be a finite number",
    "tuple": "be a list",
    "list": "be a list",
    "dict": "be a mapping",
    "none": "be null",
}
_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def explained(
    error: ValidationError, values: Mapping[str, Any], schema: type[Section]
) -> Iterator[tuple[KeyPath, str]]:
    """Where something is wrong with plain values, and what, problem by problem."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_error_path(details, values), []).append(details)
    for path, group in by_path.items():
        for message in _messages(group, path, schema):
            yield path, message


def _error_path(details: ErrorDetails, values: Any) -> KeyPath:
    """The keys that lead to an error, without the names pydantic puts between them for the members of a union."""
    path: list[str | int] = []
    for position, part in enumerate(details["loc"], start=1):
        is_last_of_missing = details["type"] == "missing" and position == len(details["loc"])
        if is_last_of_missing or (isinstance(values, dict) and part in values):
            path.append(part)
            values = None if is_last_of_missing else cast(dict[Any, Any], values)[part]
        elif isinstance(values, list) and isinstance(part, int):
            path.append(part)
            values = cast(list[Any], values)[part]
    return tuple(path)


def _messages(group: Sequence[ErrorDetails], path: KeyPath, schema: type[Section]) -> Iterator[str]:
    """What is wrong with the value at one path; a union complains once per member, which makes one sentence."""
    musts: list[str] = []
    for details in group:
        kind = details["type"]
        if kind == "extra_forbidden":
            yield _unknown_key(path, schema)
        elif kind == "missing":
            yield _missing_key(path, schema)
        elif kind == "union_tag_not_found":
            yield f"the key {details.get('ctx', {}).get('discriminator')} is missing; it chooses among the kinds"
        elif kind in ("value_error", "assertion_error"):
            yield str(details.get("ctx", {}).get("error", details["msg"]))
        else:
            musts.append(_must(details, path, schema))
    if musts:
        value = group[0]["input"]
        hint = next(filter(None, (_hint(details, path, schema) for details in group)), "")
        yield f"must {' or '.join(dict.fromkeys(musts))}, got {shown(value)}{hint}"


def _must(details: ErrorDetails, path: KeyPath, schema: type[Section]) -> str:
    """The rule a value broke, to follow the word "must"."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        return f"be {words} {context[name]:g}"
    choices = context.get("expected", context.get("expected_tags"))
    if choices is not None:
        text = str(choices)
        if kind == "union_tag_invalid":
            return f"have {context['discriminator']} one of {text}"
        return f"be one of {text}" if "," in text or " or " in text else f"be {text}"
    if is_section(schema, path) and kind in ("model_type", "dict_type", "model_attributes_type"):
        return "be a section of keys"
    if kind.endswith(("_type", "_number")) and kind.rsplit("_", 1)[0] in _MUST:
        return _MUST[kind.rsplit("_", 1)[0]]
    message = details["msg"]
    return message.partition(" should ")[2] or f"be otherwise: {message}"


def _hint(details: ErrorDetails, path: KeyPath, schema: type[Section]) -> str:
    """The remedy, with its semicolon, where the rule alone does not say it."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if isinstance(value, str):
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        similar = nearest(value, choices)
        if similar:
            return f"; did you mean {similar}?"
        if (kind == "int_type" and reads_as(value, "int")) or (kind == "float_type" and reads_as(value, "float")):
            return "; remove the quotes"
        if kind == "bool_type" and value.lower() in ("yes", "on", "no", "off", "true", "false"):
            return f"; write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}"
        if is_section(schema, path):
            return colon_hint(value)
    if kind == "union_tag_invalid":
        similar = nearest(str(context.get("tag")), re.findall(r"'([^']*)'", str(context.get("expected_tags"))))
        return f"; did you mean {similar}?" if similar else ""
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if kind == "string_type" and value is not None:
        return "; put the text in quotes"
    if kind in ("tuple_type", "list_type") and not isinstance(value, dict | None):
        return f"; write [{shown(value)}]"
    if value is None and is_section(schema, path):
        return "; remove the key to use the section's defaults"
    return ""


def _unknown_key(path: KeyPath, schema: type[Section]) -> str:
    leaf = str(path[-1])
    nested = (*path[:-1], *leaf.split("."))
    if "." in leaf and find_key(schema, nested):
        section, _, name = leaf.rpartition(".")
        return f"unknown key; in YAML sections nest: write {section}: and, indented below it, {name}:"
    if find_key(schema, path):
        return f"does not belong to this kind of {dotted(path[:-1])}; choose another kind or remove the key"
    similar = nearest_key(schema, path)
    return f"unknown key; did you mean {similar}?" if similar else "unknown key; --help lists every key"


def _missing_key(path: KeyPath, schema: type[Section]) -> str:
    if is_section(schema, path):
        inner = [key for key in every_key(schema) if key.path[:-1] == path and key.field and key.field.is_required()]
        needed = ", ".join(key.path[-1] for key in inner)
        return "required section is missing; add it" + (f" with its required keys: {needed}" if needed else "")
    as_flag = "" if any(isinstance(part, int) for part in path) else f", or give --{dotted(path)} VALUE"
    return f"required key is missing; add it{as_flag}"
