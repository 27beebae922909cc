"""Strict typed configuration: a YAML file and command-line overrides become one frozen object, or one error.

Knows nothing about DPO, GRPO or which sections exist: the schema is handed in. Imports no torch: `--help` is instant.

YAML is read by the rules of YAML 1.2 (its core schema): `1e-6` is a number, and `yes`, `no`, `on`, `off` are text.
Values are never converted to fit: `true` is no integer, `1.0` is no integer, `"3"` is no number.
"""

import dataclasses
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from groupwise.errors import UserError, edit_distance, listed, nearest

KeyPath = tuple[str | int, ...]


class Section(BaseModel):
    """Base of every configuration section: frozen, no unknown keys, no silent conversion, no infinite numbers.

    Give lists as `tuple[T, ...]`, so that the section is immutable; Literal choices are text; write `default=` out, for
    type checkers overlook a default given by position.

    >>> from pydantic import Field
    >>> class LossSection(Section):
    ...     beta: float = Field(default=0.1, gt=0, description="1/nat; pull to the reference")
    >>> LossSection(beta=0.2)
    LossSection(beta=0.2)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            default = field.default
            if isinstance(default, Section) and default.model_fields_set:
                # A file that writes `name: {}` would get the section's own defaults, not these.
                raise TypeError(f"{cls.__name__}.{name}: put the defaults into {type(default).__name__} itself")
            if any(not isinstance(choice, str) for choice in _literal_choices(field.annotation)):
                # Equality decides membership, so Literal[1] would take `true` and `1.0`.
                raise TypeError(f"{cls.__name__}.{name}: Literal choices must be text; for numbers use int with ge, le")


ConfigT = TypeVar("ConfigT", bound=Section)


@dataclasses.dataclass(frozen=True, slots=True)
class CommandLine(Generic[ConfigT]):
    """What a program was asked to do: its configuration, the file that came from, and the program's own flags set."""

    config: ConfigT
    path: Path
    flags: frozenset[str]


def load_config(schema: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply overrides (`--loss.beta 0.2` or `--loss.beta=0.2`, later ones win), check everything.

    Override values are YAML: `--data.train '[a, b]'`, `--lora null`. A mapping replaces its whole section. A key set in
    a section that is null or absent creates the section. Raises UserError listing every problem with file and line.
    """
    reading = _Reading(path)
    pairs = _split_arguments(overrides, (), reading)
    return _load(schema, pairs, reading)


def load_matching_config(schemas: Sequence[type[ConfigT]], path: Path) -> ConfigT:
    """Read a YAML file that one of several schemas describes: by the one that knows most of its sections.

    Raises UserError as `load_config` does.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):  # said better by whichever schema then reads the file
        root = None
    keys = {key.value for key, _ in root.value} if isinstance(root, yaml.MappingNode) else set[object]()
    return load_config(max(schemas, key=lambda schema: len(keys & set(schema.model_fields))), path)


def read_command_line(
    schema: type[ConfigT],
    argv: Sequence[str],
    *,
    default_path: Path,
    description: str,
    epilog: str = "",
    flags: Mapping[str, str] | None = None,
) -> CommandLine[ConfigT]:
    """Understand a whole command line (without the program's name): overrides, `--config PATH` and the flags below.

    `--help` prints every key with its type, default and description, `--print-config` the resolved YAML; both then
    raise SystemExit(0). `flags` are switches of the program itself, name -> help, such as {"check": "Load and stop."}.
    Raises UserError listing every problem.
    """
    own = dict(flags or {})
    if "--help" in argv or "-h" in argv:
        _print_help(schema, default_path, description, epilog, own)
        raise SystemExit(0)
    reading = _Reading(default_path)
    pairs = _split_arguments(argv, ("print-config", *own), reading)
    chosen = [pair.value for pair in pairs if pair.name == "config"]
    if "" in chosen or None in chosen:
        reading.complain(_Origin("--config", _AFTER_FILE), "needs the path of a YAML file")
    elif chosen:
        reading.path = Path(cast(str, chosen[-1]))
    switches = {pair.name for pair in pairs if pair.name in own or pair.name == "print-config"}
    overrides = [pair for pair in pairs if pair.name != "config" and pair.name not in switches]
    config = _load(schema, overrides, reading, extra_flags=("config", "help", "print-config", *own))
    if "print-config" in switches:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return CommandLine(config, reading.path, frozenset(switches))


def to_yaml(config: Section) -> str:
    """The whole configuration as YAML, every default spelled out, every key commented; loads back to an equal object.

    >>> from pydantic import Field
    >>> class LossSection(Section):
    ...     beta: float = Field(default=0.1, description="1/nat; pull to the reference")
    >>> class Config(Section):
    ...     loss: LossSection = LossSection()
    ...     seed: int = 0
    >>> print(to_yaml(Config()), end="")
    loss:
      beta: 0.1  # 1/nat; pull to the reference
    <BLANKLINE>
    seed: 0
    """
    return "\n".join(_yaml_lines(config, indent=0)) + "\n"


def differences(a: ConfigT, b: ConfigT) -> list[str]:
    """Every dotted key whose value differs, with both values.

    >>> class Config(Section):
    ...     seed: int = 0
    >>> differences(Config(), Config(seed=1))
    ['seed: 0 -> 1']
    """
    return list(_differences(a, b, ()))


class Setting(NamedTuple):
    """One key of a configuration: its value as YAML, and whether that is what the schema would have put there."""

    key: str
    value: str
    is_default: bool


def settings(config: Section) -> list[Setting]:
    """Every dotted key in the schema's order.

    >>> class Config(Section):
    ...     name: str
    ...     seed: int = 0
    >>> settings(Config(name="a"))
    [Setting(key='name', value='a', is_default=False), Setting(key='seed', value='0', is_default=True)]
    """
    return list(_settings(config, ()))


def _settings(section: Section, path: KeyPath) -> Iterator[Setting]:
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section) and type(value).model_fields:
            yield from _settings(value, (*path, name))
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            yield Setting(_dotted((*path, name)), _flow(plain[name]), value == default)


# --- the schema: which keys exist ------------------------------------------------------------------------------------


class _Key(NamedTuple):
    """One key the schema allows. In `path`, "*" stands for any key of a mapping and "#" for any position of a list."""

    path: tuple[str, ...]
    field: FieldInfo | None  # None for the free keys of a mapping
    is_section: bool


def _keys(schema: type[Section], prefix: tuple[str, ...] = ()) -> Iterator[_Key]:
    for name, field in schema.model_fields.items():
        path = (*prefix, name)
        inner = list(_sections_in(field.annotation, path))
        yield _Key(path, field, any(below == path for below, _ in inner))
        if _has_free_keys(field.annotation):
            yield _Key((*path, "*"), None, bool(inner))
        for below, section in inner:
            yield from _keys(section, below)


def _sections_in(annotation: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield path, annotation
        return
    origin = get_origin(annotation)
    step = {dict: ("*",), list: ("#",), tuple: ("#",)}.get(cast(type, origin), ())
    for part in get_args(annotation):
        yield from _sections_in(part, (*path, *step))


def _has_free_keys(annotation: Any) -> bool:
    if get_origin(annotation) is dict:
        return True
    return get_origin(annotation) in (Union, UnionType, Annotated) and any(map(_has_free_keys, get_args(annotation)))


def _literal_choices(annotation: Any) -> Iterator[object]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for part in get_args(annotation):
        yield from _literal_choices(part)


def _find(schema: type[Section], path: KeyPath) -> _Key | None:
    for key in _keys(schema):
        if len(key.path) == len(path) and all(_fits(step, part) for step, part in zip(key.path, path, strict=True)):
            return key
    return None


def _fits(step: str, part: str | int) -> bool:
    return step == "*" or (step == "#" if isinstance(part, int) else step == part)


def _suggestion(schema: type[Section], path: KeyPath, flags: Iterable[str] = ()) -> str | None:
    """The allowed name most like an unknown one: a misspelt key, or the right key looked for in the wrong section."""
    above = _find(schema, path[:-1])
    if above and not above.is_section:
        return _dotted(path[:-1])  # one step too deep
    wrong, wrong_leaf = _dotted(path).casefold(), str(path[-1]).casefold()
    names: dict[str, str] = {name: name for name in flags}
    for key in _keys(schema):
        filled = [str(path[i]) if step in "#*" and i < len(path) else step for i, step in enumerate(key.path)]
        if "#" not in filled and "*" not in filled and key.field is not None:
            names.setdefault(".".join(filled), key.path[-1])
    best: tuple[float, str] | None = None
    for name, leaf in names.items():
        whole = edit_distance(wrong, name.casefold())
        elsewhere = edit_distance(wrong_leaf, leaf.casefold())
        # A name that is exactly right but stands in the wrong section beats a misspelling in the right one. Beyond
        # that, only as many edits count as typing errors as a third of the key's own letters.
        distance = min(whole, elsewhere + 0.5)
        if distance <= max(1.0, max(len(wrong_leaf), len(leaf)) / 3) and (best is None or distance < best[0]):
            best = distance, name
    return None if best is None else best[1]


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


# --- reading: text -> plain values that remember where they were written ---------------------------------------------


class _Origin(NamedTuple):
    label: str  # "configs/dpo.yaml:12" or "--loss.beta"
    order: int  # where it stands among everything that was read


_AFTER_FILE = 10**9  # problems of the command line are listed after those of the file


@dataclasses.dataclass
class _Reading:
    """What has been read so far: plain values, where each of them was written, and every problem found."""

    path: Path
    values: dict[str, Any] = dataclasses.field(default_factory=lambda: {})
    origins: dict[KeyPath, _Origin] = dataclasses.field(default_factory=lambda: {})
    problems: list[tuple[int, str]] = dataclasses.field(default_factory=lambda: [])
    unread: set[KeyPath] = dataclasses.field(default_factory=lambda: set[KeyPath]())  # already complained about

    def complain(self, origin: _Origin, message: str, path: KeyPath = ()) -> None:
        dotted = _dotted(path)
        named = f"{dotted}: " if dotted and origin.label != f"--{dotted}" else ""
        self.problems.append((origin.order, f"{origin.label}: {named}{message}"))

    def origin_of(self, path: KeyPath) -> _Origin:
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return _Origin(str(self.path), 0)

    def forget(self, path: KeyPath) -> None:
        self.origins = {at: origin for at, origin in self.origins.items() if at[: len(path)] != path}


class _Loader(yaml.SafeLoader):
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
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _str_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    one_line = text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if one_line else '"')


_Dumper.add_representer(str, _str_node)


def _to_float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: {"true": True, "false": False}[text.lower()],
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": _to_float,
    "tag:yaml.org,2002:str": str,
}


def _read_file(reading: _Reading) -> None:
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
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}:{_yaml_problem(error, text)}") from None
    if node is None:
        raise UserError(f"{path}: holds no keys; write {{}} to use every default")

    def origin_at(mark: yaml.Mark) -> _Origin:
        return _Origin(f"{path}:{mark.line + 1}", mark.line + 1)

    values = _plain(node, (), origin_at, reading)
    if isinstance(values, dict):
        reading.values = cast(dict[str, Any], values)
    else:
        where = origin_at(node.start_mark).label
        raise UserError(f"{where}: must hold keys with values, got {_shown(values)}{_colon_hint(values)}")


def _yaml_problem(error: yaml.YAMLError, text: str) -> str:
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


def _plain(node: yaml.Node, path: KeyPath, origin_at: Callable[[yaml.Mark], _Origin], reading: _Reading) -> Any:
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
            values[name] = _plain(value_node, (*path, name), origin_at, reading)
        return values
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items: list[Any] = []
        for position, item in enumerate(cast(list[yaml.Node], node.value)):
            reading.origins[(*path, position)] = origin_at(item.start_mark)
            items.append(_plain(item, (*path, position), origin_at, reading))
        return items
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        try:
            return _SCALARS[node.tag](node.value)
        except (ValueError, KeyError):
            pass  # an explicit tag that the text does not fit, such as `!!int x`
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    reading.complain(origin_at(node.start_mark), f"the tag {tag} cannot be used here; write the value without it", path)
    reading.unread.add(path)
    return None


# --- the command line: arguments -> overrides ------------------------------------------------------------------------


class _Pair(NamedTuple):
    name: str  # "loss.beta", without the dashes
    value: str | None  # None: nothing followed it
    origin: _Origin


def _split_arguments(argv: Sequence[str], switches: Iterable[str], reading: _Reading) -> list[_Pair]:
    """Cut a command line into flags and their values; `switches` take none."""
    pairs: list[_Pair] = []
    waiting = list(argv)
    while waiting:
        order = _AFTER_FILE + len(argv) - len(waiting)
        argument = waiting.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        origin = _Origin(f"--{name}", order)
        if not argument.startswith("--") or not name:
            message = "unexpected argument; a value follows its flag, as in --section.key VALUE"
            reading.complain(_Origin(argument, order), message)
        elif name in switches:
            if equals:
                reading.complain(origin, "takes no value")
            pairs.append(_Pair(name, None, origin))
        elif equals:
            pairs.append(_Pair(name, value, origin))
        elif waiting and not waiting[0].startswith("--"):
            pairs.append(_Pair(name, waiting.pop(0), origin))
        else:
            pairs.append(_Pair(name, None, origin))
    return pairs


def _override(schema: type[Section], pair: _Pair, flags: Iterable[str], reading: _Reading) -> None:
    path = tuple(pair.name.split("."))
    key = _find(schema, path)
    if key is None:
        similar = _suggestion(schema, path, flags)
        known = f"did you mean --{similar}?" if similar else "--help lists every key"
        reading.complain(pair.origin, f"unknown key; {known}")
        return
    if pair.value is None:
        example = "true" if key.field and key.field.annotation is bool else "VALUE"
        reading.complain(pair.origin, f"needs a value: --{pair.name} {example}")
        return
    parent = reading.values
    for length, part in enumerate(path[:-1], start=1):
        inner = parent.get(part)
        if inner is None:
            inner = _start_of(_find(schema, path[:length]), absent=part not in parent)
            parent[part] = inner
            reading.forget(path[:length])
            reading.origins[path[:length]] = pair.origin
        if not isinstance(inner, dict):
            return  # the file gives this section a wrong value, which is reported by itself
        parent = cast(dict[str, Any], inner)
    parent[path[-1]] = _read_value(pair, path, reading)


def _start_of(key: _Key | None, *, absent: bool) -> dict[str, Any]:
    """What a section or mapping holds that comes into being because one key in it is set."""
    default = key.field.get_default(call_default_factory=True) if absent and key and key.field else None
    if isinstance(default, Section):
        return default.model_dump(mode="json", exclude_unset=True)
    return dict(cast(dict[str, Any], default)) if isinstance(default, dict) else {}


def _read_value(pair: _Pair, path: KeyPath, reading: _Reading) -> Any:
    text = cast(str, pair.value)
    reading.forget(path)
    reading.origins[path] = pair.origin
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        _, _, problem = _yaml_problem(error, text).partition(": ")
        reading.complain(pair.origin, f"{problem}; a text may need quotes: '\"...\"'")
        reading.unread.add(path)
        return None
    if text.strip() if node is None else isinstance(node, yaml.ScalarNode) and text[node.end_mark.index :].strip():
        reading.complain(pair.origin, f"a # starts a comment in YAML; put the text in quotes: {json.dumps(text)!r}")
        reading.unread.add(path)
    return None if node is None else _plain(node, path, lambda mark: pair.origin, reading)


# --- checking: plain values -> the typed object, or every problem in words -------------------------------------------


def _load(schema: type[ConfigT], pairs: Sequence[_Pair], reading: _Reading, extra_flags: Sequence[str] = ()) -> ConfigT:
    _read_file(reading)
    for pair in pairs:
        _override(schema, pair, extra_flags, reading)
    try:
        # JSON is the language of plain values: in strict mode its arrays are the tuples of the schema.
        config = schema.model_validate_json(json.dumps(reading.values))
    except ValidationError as error:
        _explain(error, schema, reading)
        config = None
    if config is None or reading.problems:
        raise UserError(listed(list(dict.fromkeys(text for _, text in sorted(reading.problems, key=lambda p: p[0])))))
    return config


def _explain(error: ValidationError, schema: type[Section], reading: _Reading) -> None:
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_error_path(details, reading.values), []).append(details)
    for path, group in by_path.items():
        if path not in reading.unread:
            for message in _messages(group, path, schema):
                reading.complain(reading.origin_of(path), message, path)


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
        yield f"must {' or '.join(dict.fromkeys(musts))}, got {_shown(value)}{hint}"


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
    if _is_section(path, schema) and kind in ("model_type", "dict_type", "model_attributes_type"):
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
        if kind in ("int_type", "float_type") and re.fullmatch(_RESOLVERS[kind[:-5]][0], value):
            return "; remove the quotes"
        if kind == "bool_type" and value.lower() in ("yes", "on", "no", "off", "true", "false"):
            return f"; write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}"
        if _is_section(path, schema):
            return _colon_hint(value)
    if kind == "union_tag_invalid":
        similar = nearest(str(context.get("tag")), re.findall(r"'([^']*)'", str(context.get("expected_tags"))))
        return f"; did you mean {similar}?" if similar else ""
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if kind == "string_type" and value is not None:
        return "; put the text in quotes"
    if kind in ("tuple_type", "list_type") and not isinstance(value, dict | None):
        return f"; write [{_shown(value)}]"
    if value is None and _is_section(path, schema):
        return "; remove the key to use the section's defaults"
    return ""


def _colon_hint(value: Any) -> str:
    return "; a space must follow the colon" if isinstance(value, str) and ":" in value else ""


def _unknown_key(path: KeyPath, schema: type[Section]) -> str:
    leaf = str(path[-1])
    nested = (*path[:-1], *leaf.split("."))
    if "." in leaf and _find(schema, nested):
        section, _, name = leaf.rpartition(".")
        return f"unknown key; in YAML sections nest: write {section}: and, indented below it, {name}:"
    if _find(schema, path):
        return f"does not belong to this kind of {_dotted(path[:-1])}; choose another kind or remove the key"
    similar = _suggestion(schema, path)
    return f"unknown key; did you mean {similar}?" if similar else "unknown key; --help lists every key"


def _missing_key(path: KeyPath, schema: type[Section]) -> str:
    if _is_section(path, schema):
        inner = [key for key in _keys(schema) if key.path[:-1] == path and key.field and key.field.is_required()]
        needed = ", ".join(key.path[-1] for key in inner)
        return "required section is missing; add it" + (f" with its required keys: {needed}" if needed else "")
    as_flag = "" if any(isinstance(part, int) for part in path) else f", or give --{_dotted(path)} VALUE"
    return f"required key is missing; add it{as_flag}"


def _is_section(path: KeyPath, schema: type[Section]) -> bool:
    key = _find(schema, path)
    return key is not None and key.is_section


# --- writing: values -> text -----------------------------------------------------------------------------------------

_WIDTH = 100


def _flow(value: Any) -> str:
    """One line of YAML for a plain value."""
    # A scalar alone at the top of a document would be followed by an end marker, and in a list commas need quotes.
    line = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return line.strip()[1:-1]


def _shown(value: Any) -> str:
    """A value as an error quotes it."""
    text = "nothing (null)" if value is None else repr(value) if isinstance(value, str) else _flow(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _yaml_lines(section: Section, indent: int) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    fields = type(section).model_fields
    heads: dict[str, str] = {}
    for name in fields:
        value = getattr(section, name)
        opens = isinstance(value, Section) and type(value).model_fields
        heads[name] = " " * indent + _flow(name) + (":" if opens else f": {_flow(plain[name])}")
    column = max((len(head) for head in heads.values() if len(head) <= _WIDTH // 2), default=0) + 2
    after_section = False
    for position, (name, head) in enumerate(heads.items()):
        value = getattr(section, name)
        opens = isinstance(value, Section) and bool(type(value).model_fields)
        if indent == 0 and position > 0 and (opens or after_section):
            yield ""
        after_section = opens
        comment = " ".join((fields[name].description or "").split())
        commented = f"{head:<{0 if opens else column - 2}}  # {comment}"
        if not comment:
            yield head
        elif len(commented) <= _WIDTH + 20:
            yield commented
        else:
            yield from (" " * indent + f"# {line}" for line in textwrap.wrap(comment, _WIDTH - indent - 2))
            yield head
        if isinstance(value, Section):
            yield from _yaml_lines(value, indent + 2)


def _differences(a: Section, b: Section, path: KeyPath) -> Iterator[str]:
    plain_a, plain_b = a.model_dump(mode="json"), b.model_dump(mode="json")
    for name in type(a).model_fields:
        value_a, value_b = getattr(a, name), getattr(b, name)
        if isinstance(value_a, Section) and type(value_a) is type(value_b):
            yield from _differences(value_a, value_b, (*path, name))
        elif value_a != value_b:
            yield f"{_dotted((*path, name))}: {_flow(plain_a[name])} -> {_flow(plain_b[name])}"


# --- help ------------------------------------------------------------------------------------------------------------


def _print_help(
    schema: type[Section], default_path: Path, description: str, epilog: str, flags: Mapping[str, str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(60, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))
    console = Console(width=width, highlight=False, soft_wrap=False)
    tables = _help_tables(schema, default_path, flags)
    longest = max(len(flag) for table in tables for flag in table.rows)
    console.print(Text(f"usage: {Path(sys.argv[0]).name} [--config PATH] [--SECTION.KEY VALUE ...]", "bold"))
    console.print(Text(f"\n{description}\nValues are YAML, lists are written '[a, b]'; later flags win."))
    for table in tables:
        console.print(Text.assemble("\n", (table.title, "bold"), f"  {table.about}" if table.about else ""))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=min(longest + 2, width - 24), overflow="fold")
        grid.add_column(overflow="fold")
        for flag, (text, facts) in table.rows.items():
            lines = [(text, ""), (facts, "dim")]
            told = Text("\n").join(Text(line, style) for line, style in lines if line)
            grid.add_row(Text(f"  {flag}", "cyan"), told)
        console.print(grid)
    if epilog:
        console.print(Text(f"\n{epilog}"))


@dataclasses.dataclass
class KeyTable:
    """The keys of one section: flag -> (what it means, type and default)."""

    title: str
    about: str = ""
    rows: dict[str, tuple[str, str]] = dataclasses.field(default_factory=lambda: {})  # flag -> description, facts


def key_tables(schema: type[Section]) -> list[KeyTable]:
    """Every key of a configuration, section by section, as `--help` tells them."""
    tables: dict[tuple[str, ...], KeyTable] = {(): KeyTable("keys outside any section")}
    for key in _keys(schema):
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


def _help_tables(schema: type[Section], default_path: Path, flags: Mapping[str, str]) -> list[KeyTable]:
    general = KeyTable("options")
    general.rows["--config PATH"] = ("Configuration file, YAML.", f"default {default_path}")
    general.rows["--print-config"] = ("Print the resolved configuration as YAML and stop.", "")
    general.rows["--help"] = ("Print this and stop.", "")
    general.rows.update({f"--{name}": (" ".join(text.split()), "") for name, text in flags.items()})
    return [general, *key_tables(schema)]


def _about(annotation: Any) -> str:
    """What the docstring of a section's class says first."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section) and kind.__doc__:
            return " ".join(kind.__doc__.split("\n\n")[0].split())
    return ""


def _how_to_switch(name: str, section: FieldInfo) -> str:
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
    return f"{kind}, default {_flow(to_jsonable_python(default))}"


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
