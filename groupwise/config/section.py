"""What every configuration section is: frozen, strict, and made of keys alone.

Knows no YAML, no file and no command line.
"""

from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict


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


def _literal_choices(annotation: Any) -> Iterator[object]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for part in get_args(annotation):
        yield from _literal_choices(part)
