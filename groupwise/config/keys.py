"""Which keys a schema has, and which of them a wrong one was probably meant to be.

Knows neither values nor where anything is written.
"""

from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, cast, get_args, get_origin

from pydantic.fields import FieldInfo

from groupwise.config.section import Section
from groupwise.errors import edit_distance

KeyPath = tuple[str | int, ...]
"""Where a value stands: names of keys, and positions in lists."""


class Key(NamedTuple):
    """One key the schema allows. In `path`, "*" stands for any key of a mapping and "#" for any position of a list."""

    path: tuple[str, ...]
    field: FieldInfo | None  # None for the free keys of a mapping
    is_section: bool


def every_key(schema: type[Section], prefix: tuple[str, ...] = ()) -> Iterator[Key]:
    """The keys in the schema's order, a section before what is in it, and every kind of a section of several."""
    for name, field in schema.model_fields.items():
        path = (*prefix, name)
        inner = list(_sections_in(field.annotation, path))
        yield Key(path, field, any(below == path for below, _ in inner))
        if _has_free_keys(field.annotation):
            yield Key((*path, "*"), None, bool(inner))
        for below, section in inner:
            yield from every_key(section, below)


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


def find_key(schema: type[Section], path: KeyPath) -> Key | None:
    """The key that a path leads to, None where the schema has none there."""
    for key in every_key(schema):
        if len(key.path) == len(path) and all(_fits(step, part) for step, part in zip(key.path, path, strict=True)):
            return key
    return None


def _fits(step: str, part: str | int) -> bool:
    return step == "*" or (step == "#" if isinstance(part, int) else step == part)


def is_section(schema: type[Section], path: KeyPath) -> bool:
    """Whether a section stands at this path, and not a value."""
    key = find_key(schema, path)
    return key is not None and key.is_section


def nearest_key(schema: type[Section], path: KeyPath, flags: Iterable[str] = ()) -> str | None:
    """The allowed name most like an unknown one: a misspelt key, or the right key looked for in the wrong section."""
    above = find_key(schema, path[:-1])
    if above and not above.is_section:
        return dotted(path[:-1])  # one step too deep
    wrong, wrong_leaf = dotted(path).casefold(), str(path[-1]).casefold()
    names: dict[str, str] = {name: name for name in flags}
    for key in every_key(schema):
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


def dotted(path: KeyPath) -> str:
    """A path as people write it.

    >>> dotted(("rewards", 0, "weight"))
    'rewards.0.weight'
    """
    return ".".join(map(str, path))
