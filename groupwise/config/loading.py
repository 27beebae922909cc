"""A YAML file and overrides become one checked object, or one error that lists every problem.

Knows which steps there are: what they read and what they say is in `reading.py`, `overrides.py` and `messages.py`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from groupwise.config.dialect import Loader
from groupwise.config.messages import explained
from groupwise.config.overrides import Argument, apply_override, split_arguments
from groupwise.config.reading import Reading, read_file
from groupwise.config.section import ConfigT
from groupwise.errors import UserError, listed


def load_config(schema: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply overrides (`--loss.beta 0.2` or `--loss.beta=0.2`, later ones win), check everything.

    Override values are YAML: `--data.train '[a, b]'`, `--lora null`. A mapping replaces its whole section. A key set in
    a section that is null or absent creates the section. Raises UserError listing every problem with file and line.
    """
    reading = Reading(path)
    arguments = split_arguments(overrides, (), reading)
    return load_checked(schema, arguments, reading)


def load_matching_config(schemas: Sequence[type[ConfigT]], path: Path) -> ConfigT:
    """Read a YAML file that one of several schemas describes: by the one that knows most of its sections.

    Raises UserError as `load_config` does.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, ValueError, yaml.YAMLError):  # said better by whichever schema then reads the file
        root = None
    keys = {key.value for key, _ in root.value} if isinstance(root, yaml.MappingNode) else set[object]()
    return load_config(max(schemas, key=lambda schema: len(keys & set(schema.model_fields))), path)


def load_checked(
    schema: type[ConfigT], overrides: Sequence[Argument], reading: Reading, extra_flags: Sequence[str] = ()
) -> ConfigT:
    """Read the file, put overrides among its values, check everything; `extra_flags` are names to suggest besides keys.

    Raises UserError with every problem of the command line and the file, in the order they stand there.
    """
    read_file(reading)
    for override in overrides:
        apply_override(schema, override, extra_flags, reading)
    try:
        # JSON is the language of plain values: in strict mode its arrays are the tuples of the schema.
        config = schema.model_validate_json(json.dumps(reading.values))
    except ValidationError as error:
        for at, message in explained(error, reading.values, schema):
            if at not in reading.unread:
                reading.complain(reading.origin_of(at), message, at)
        config = None
    if config is None or reading.problems:
        raise UserError(listed(list(dict.fromkeys(text for _, text in sorted(reading.problems, key=lambda p: p[0])))))
    return config
