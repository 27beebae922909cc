"""A configuration as YAML that a person may go on with: every default spelled out, every key commented.

Knows nothing of how it is read back.
"""

import textwrap
from collections.abc import Iterator

from groupwise.config.dialect import flow
from groupwise.config.section import Section

_WIDTH = 100  # columns; up to 20 more where a comment then fits beside its key


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


def _yaml_lines(section: Section, indent: int) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    fields = type(section).model_fields
    heads: dict[str, str] = {}
    for name in fields:
        value = getattr(section, name)
        opens = isinstance(value, Section) and type(value).model_fields
        heads[name] = " " * indent + flow(name) + (":" if opens else f": {flow(plain[name])}")
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
