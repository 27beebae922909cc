"""Adapters on disk for servers to load: a folder per version, named by its content, complete or absent.

Knows nothing about servers.
"""

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from groupwise.errors import UserError
from groupwise.model.policy import Policy

_ASIDE = ".writing-"


class Versions:
    """The folder in which this run's versions lie; other runs may use it too.

    A name is the run's and the first digits of the SHA-256 of the weights, so one name never stands for two adapters.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder.resolve()
        self.prefix = f"groupwise-{re.sub(r'[^A-Za-z0-9_.]', '_', run)}-"

    def write(self, policy: Policy) -> str:
        """Put the policy's adapter there, and return its name. Raises UserError when the disk does not take it."""
        aside = self.folder / f"{_ASIDE}{self.prefix}adapter"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            policy.save_adapter(aside)
            digest = hashlib.sha256()
            for file in sorted(aside.iterdir()):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
            name = f"{self.prefix}{digest.hexdigest()[:12]}"
            if (self.folder / name).exists():
                shutil.rmtree(aside)
            else:
                aside.rename(self.folder / name)
        except OSError as error:
            raise UserError(
                f"sampling.versions_folder: {self.folder} cannot be written: {error.strerror}; name a folder that this "
                "machine may write and the servers see under the same path"
            ) from error
        return name

    def path(self, name: str) -> str:
        """Where a version lies, on this machine and on those of the servers."""
        return str(self.folder / name)

    def keep(self, names: Sequence[str]) -> None:
        """Delete all versions of this run but these."""
        for place in self.folder.glob(f"{self.prefix}*"):
            if place.name not in names:
                shutil.rmtree(place, ignore_errors=True)
