"""A function in the user's own file, `path/to/file.py:function`. Knows nothing about what the function is for.

The file is run as code, with all the rights of the process that loads it.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from groupwise.errors import UserError, nearest


def split_name(name: str) -> tuple[Path, str] | None:
    """The file and the function that a name means, or None when the name has no colon.

    >>> split_name("rewards/mine.py:brevity")
    (PosixPath('rewards/mine.py'), 'brevity')
    """
    path, separator, attribute = name.rpartition(":")
    return (Path(path), attribute) if separator else None


def run_file(path: Path, *, key: str) -> ModuleType:
    """Run a Python file as a module of its own; `key` is the configuration key that the UserError quotes."""
    if not path.is_file():
        raise UserError(f"{key}: there is no file {str(path)!r}")
    unique = hashlib.blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{unique}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: {path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def function_of(module: ModuleType, path: Path, attribute: str, *, key: str) -> Callable[..., object]:
    """The function of that name in a file that was run; raises UserError with the nearest name there is."""
    function = getattr(module, attribute, None)
    if not callable(function):
        guess = nearest(attribute, [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")])
        hint = f"; did you mean {guess}?" if guess else ""
        raise UserError(f"{key}: {path} has no function {attribute!r}{hint}")
    return function
