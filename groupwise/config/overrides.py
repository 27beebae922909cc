"""The command line cut into flags and their values, and one value put among those of the file.

Knows the schema's keys, not what their values must be.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import yaml

from groupwise.config.dialect import Loader
from groupwise.config.keys import Key, KeyPath, find_key, nearest_key
from groupwise.config.reading import AFTER_FILE, Origin, Reading, plain_value, yaml_problem
from groupwise.config.section import Section


class Argument(NamedTuple):
    """One flag of a command line."""

    name: str  # "loss.beta", without the dashes
    value: str | None  # None: nothing followed it
    origin: Origin


def split_arguments(argv: Sequence[str], switches: Iterable[str], reading: Reading) -> list[Argument]:
    """Cut a command line into flags and their values; `switches` take none."""
    arguments: list[Argument] = []
    waiting = list(argv)
    while waiting:
        order = AFTER_FILE + len(argv) - len(waiting)
        word = waiting.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        origin = Origin(f"--{name}", order)
        if not word.startswith("--") or not name:
            message = "unexpected argument; a value follows its flag, as in --section.key VALUE"
            reading.complain(Origin(word, order), message)
        elif name in switches:
            if equals:
                reading.complain(origin, "takes no value")
            arguments.append(Argument(name, None, origin))
        elif equals:
            arguments.append(Argument(name, value, origin))
        elif waiting and not waiting[0].startswith("--"):
            arguments.append(Argument(name, waiting.pop(0), origin))
        else:
            arguments.append(Argument(name, None, origin))
    return arguments


def apply_override(schema: type[Section], argument: Argument, flags: Iterable[str], reading: Reading) -> None:
    """Put one value among those read so far; `flags` are names to suggest besides keys."""
    path = tuple(argument.name.split("."))
    key = find_key(schema, path)
    if key is None:
        similar = nearest_key(schema, path, flags)
        known = f"did you mean --{similar}?" if similar else "--help lists every key"
        reading.complain(argument.origin, f"unknown key; {known}")
        return
    if argument.value is None:
        example = "true" if key.field and key.field.annotation is bool else "VALUE"
        reading.complain(argument.origin, f"needs a value: --{argument.name} {example}")
        return
    parent = reading.values
    for length, part in enumerate(path[:-1], start=1):
        inner = parent.get(part)
        if inner is None:
            inner = _start_of(find_key(schema, path[:length]), absent=part not in parent)
            parent[part] = inner
            reading.forget(path[:length])
            reading.origins[path[:length]] = argument.origin
        if not isinstance(inner, dict):
            return  # the file gives this section a wrong value, which is reported by itself
        parent = cast(dict[str, Any], inner)
    parent[path[-1]] = _read_value(argument, path, reading)


def _start_of(key: Key | None, *, absent: bool) -> dict[str, Any]:
    """What a section or mapping holds that comes into being because one key in it is set."""
    default = key.field.get_default(call_default_factory=True) if absent and key and key.field else None
    if isinstance(default, Section):
        return default.model_dump(mode="json", exclude_unset=True)
    return dict(cast(dict[str, Any], default)) if isinstance(default, dict) else {}


def _read_value(argument: Argument, path: KeyPath, reading: Reading) -> Any:
    """The value of a flag, which is YAML, and from now on that of the key."""
    text = cast(str, argument.value)
    reading.forget(path)
    reading.origins[path] = argument.origin
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        _, _, problem = yaml_problem(error, text).partition(": ")
        reading.complain(argument.origin, f"{problem}; a text may need quotes: '\"...\"'")
        reading.unread.add(path)
        return None
    if text.strip() if node is None else isinstance(node, yaml.ScalarNode) and text[node.end_mark.index :].strip():
        reading.complain(argument.origin, f"a # starts a comment in YAML; put the text in quotes: {json.dumps(text)!r}")
        reading.unread.add(path)
    return None if node is None else plain_value(node, path, lambda mark: argument.origin, reading)
