"""A configuration compared key by key: with another one, and with its own defaults.

Knows no file, and not what a difference means.
"""

from collections.abc import Iterator
from typing import NamedTuple

from groupwise.config.dialect import flow
from groupwise.config.keys import KeyPath, dotted
from groupwise.config.section import ConfigT, Section


def differences(a: ConfigT, b: ConfigT) -> list[str]:
    """Every dotted key whose value differs, with both values.

    >>> class Config(Section):
    ...     seed: int = 0
    >>> differences(Config(), Config(seed=1))
    ['seed: 0 -> 1']
    """
    return list(_differences(a, b, ()))


def _differences(a: Section, b: Section, path: KeyPath) -> Iterator[str]:
    plain_a, plain_b = a.model_dump(mode="json"), b.model_dump(mode="json")
    for name in type(a).model_fields:
        value_a, value_b = getattr(a, name), getattr(b, name)
        if isinstance(value_a, Section) and type(value_a) is type(value_b):
            yield from _differences(value_a, value_b, (*path, name))
        elif value_a != value_b:
            yield f"{dotted((*path, name))}: {flow(plain_a[name])} -> {flow(plain_b[name])}"


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
            yield Setting(dotted((*path, name)), flow(plain[name]), value == default)
