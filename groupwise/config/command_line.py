"""A program's whole command line: overrides, the file they change, and the program's own switches.

Knows what `--help`, `--config` and `--print-config` mean, not what a program does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, cast

from groupwise.config.help import print_help
from groupwise.config.loading import load_checked
from groupwise.config.overrides import split_arguments
from groupwise.config.reading import AFTER_FILE, Origin, Reading
from groupwise.config.section import ConfigT
from groupwise.config.writing import to_yaml


@dataclasses.dataclass(frozen=True, slots=True)
class CommandLine(Generic[ConfigT]):
    """What a program was asked to do: its configuration, the file that came from, and the program's own flags set."""

    config: ConfigT
    path: Path
    flags: frozenset[str]


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
        print_help(schema, default_path, description, epilog, own)
        raise SystemExit(0)
    reading = Reading(default_path)
    arguments = split_arguments(argv, ("print-config", *own), reading)
    chosen = [argument.value for argument in arguments if argument.name == "config"]
    if "" in chosen or None in chosen:
        reading.complain(Origin("--config", AFTER_FILE), "needs the path of a YAML file")
    elif chosen:
        reading.path = Path(cast(str, chosen[-1]))
    switches = {argument.name for argument in arguments if argument.name in ("print-config", *own)}
    overrides = [argument for argument in arguments if argument.name not in ("config", *switches)]
    config = load_checked(schema, overrides, reading, extra_flags=("config", "help", "print-config", *own))
    if "print-config" in switches:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return CommandLine(config, reading.path, frozenset(switches))
