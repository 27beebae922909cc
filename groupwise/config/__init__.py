"""Strict typed configuration: a YAML file and command-line overrides become one frozen object, or one error.

Knows nothing about DPO, GRPO or which sections exist: the schema is handed in. Imports no torch: `--help` is instant.
Values are never converted to fit: `true` is no integer, `1.0` is no integer, `"3"` is no number.
"""

from groupwise.config.command_line import CommandLine, read_command_line
from groupwise.config.comparing import Setting, differences, settings
from groupwise.config.loading import load_config, load_matching_config
from groupwise.config.section import Section
from groupwise.config.tables import KeyTable, key_tables
from groupwise.config.writing import to_yaml

__all__ = [
    "CommandLine",
    "KeyTable",
    "Section",
    "Setting",
    "differences",
    "key_tables",
    "load_config",
    "load_matching_config",
    "read_command_line",
    "settings",
    "to_yaml",
]
