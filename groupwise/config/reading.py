"""YAML text to plain values that remember where they were written, and every problem found on the way.

Knows no schema: which keys there are, and what their values must be, is for others.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from yaml.reader import ReaderError

from groupwise.config.dialect import SCALARS, Loader, colon_hint, shown
from groupwise.config.keys import KeyPath, dotted
from groupwise.errors import UserError, nearest

AFTER_FILE = 10**9  # problems of the command line are listed after those of the file


class Origin(NamedTuple):
    """Where something was written."""

    label: str  # "configs/dpo.yaml:12" or "--loss.beta"
    order: int  # where it stands among everything that was read


@dataclasses.dataclass
class Reading:
    """What has been read so far: plain values, where each of them was written, and every problem found."""

    path: Path
    values: dict[str, Any] = dataclasses.field(default_factory=lambda: {})
    origins: dict[KeyPath, Origin] = dataclasses.field(default_factory=lambda: {})
    problems: list[tuple[int, str]] = dataclasses.field(default_factory=lambda: [])
    unread: set[KeyPath] = dataclasses.field(default_factory=lambda: set[KeyPath]())  # already complained about

    def complain(self, origin: Origin, message: str, path: KeyPath = ()) -> None:
        """Note a problem at a key; the origin is not told twice where it is that key's own flag."""
        key = dotted(path)
        named = f"{key}: " if key and origin.label != f"--{key}" else ""
        self.problems.append((origin.order, f"{origin.label}: {named}{message}"))

    def origin_of(self, path: KeyPath) -> Origin:
        """Where a value was written, or the innermost section around it; else the file as a whole."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return Origin(str(self.path), 0)

    def forget(self, path: KeyPath) -> None:
        """Drop the origins of a value that gives way to another, and of all in it."""
        self.origins = {at: origin for at, origin in self.origins.items() if at[: len(path)] != path}


def read_file(reading: Reading) -> None:
    """Read the file at the reading's path into its values. Raises UserError where it holds no keys or is no YAML."""
    path = reading.path
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        similar = nearest(path.name, sorted(siblings))
        hint = f"; did you mean {path.parent / similar}?" if similar else "; give another with --config PATH"
        raise UserError(f"{path}: no such file{hint}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}:{yaml_problem(error, text)}") from None
    if node is None:
        raise UserError(f"{path}: holds no keys; write {{}} to use every default")

    def origin_at(mark: yaml.Mark) -> Origin:
        return Origin(f"{path}:{mark.line + 1}", mark.line + 1)

    values = plain_value(node, (), origin_at, reading)
    if isinstance(values, dict):
        reading.values = cast(dict[str, Any], values)
    else:
        where = origin_at(node.start_mark).label
        raise UserError(f"{where}: must hold keys with values, got {shown(values)}{colon_hint(values)}")


def yaml_problem(error: yaml.YAMLError, text: str) -> str:
    """'LINE:COLUMN: what is wrong' of text that is not YAML."""
    if isinstance(error, ReaderError):
        before = text[: cast(int, error.position)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        character = ascii(text[len(before) : len(before) + 1])
        return f"{line}:{column}: character {character} is not allowed in YAML; remove it"
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    assert mark is not None
    what = error.problem or error.context
    context = f" ({error.context}, line {error.context_mark.line + 1})" if error.context and error.context_mark else ""
    hint = ""
    if what and "'\\t'" in what:
        hint = "; indent with spaces"
    elif what and "mapping values are not allowed" in what:
        hint = "; put a text that contains ': ' in quotes, and check the indentation"
    return f"{mark.line + 1}:{mark.column + 1}: not valid YAML: {what}{context}{hint}"


def plain_value(node: yaml.Node, path: KeyPath, origin_at: Callable[[yaml.Mark], Origin], reading: Reading) -> Any:
    """The value of a YAML node; notes where every key stands, and complains about duplicates, tags and odd keys."""
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        values: dict[str, Any] = {}
        first_mark: dict[str, yaml.Mark] = {}
        for key_node, value_node in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
            origin = origin_at(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                reading.complain(origin, "a key must be a single word", path)
                continue
            name = str(key_node.value)
            if name in values:
                first, second = first_mark[name].line + 1, key_node.start_mark.line + 1
                where = f", on lines {first} and {second}" if first != second else ""
                reading.complain(origin, f"given twice{where}; keep one", (*path, name))
                continue
            first_mark[name] = key_node.start_mark
            reading.origins[(*path, name)] = origin
            values[name] = plain_value(value_node, (*path, name), origin_at, reading)
        return values
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items: list[Any] = []
        for position, item in enumerate(cast(list[yaml.Node], node.value)):
            reading.origins[(*path, position)] = origin_at(item.start_mark)
            items.append(plain_value(item, (*path, position), origin_at, reading))
        return items
    if isinstance(node, yaml.ScalarNode) and node.tag in SCALARS:
        try:
            return SCALARS[node.tag](node.value)
        except (ValueError, KeyError):
            pass  # an explicit tag that the text does not fit, such as `!!int x`
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    reading.complain(origin_at(node.start_mark), f"the tag {tag} cannot be used here; write the value without it", path)
    reading.unread.add(path)
    return None
