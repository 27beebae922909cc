"""Adapters on disk for servers to load: a folder for each, named by its content, complete or absent.

Knows nothing about servers.
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from groupwise.errors import UserError
from groupwise.model.policy import Policy

_ASIDE = ".writing-"


class VersionsFolder:
    """Versions of one adapter in a folder that others use too: all names of ours, and no others, begin with `prefix`.

    The rest of a name are the first digits of the SHA-256 of the weights, so one name never stands for two adapters.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder.resolve()
        self.prefix = prefix

    @classmethod
    def of_run(cls, folder: Path, run: Path) -> "VersionsFolder":
        """What the run in that folder puts there. Runs of one name in several folders have different prefixes.

        >>> one, other = (VersionsFolder.of_run(Path("versions"), Path(runs) / "my run") for runs in ("a", "b"))
        >>> one.prefix.startswith("groupwise-my_run-"), one.prefix == other.prefix
        (True, False)
        """
        place = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]
        return cls(folder, f"groupwise-{re.sub(r'[^A-Za-z0-9_.]', '_', run.name)}-{place}-")

    @classmethod
    def of_check(cls, folder: Path) -> "VersionsFolder":
        """What one look at servers puts there; no other has this prefix, not that of the same run either."""
        return cls(folder, f"groupwise-check-{secrets.token_hex(8)}-")

    def write(self, policy: Policy) -> str:
        """Put the policy's adapter there, and return its name. Raises UserError when the disk does not take it."""
        aside = self.folder / f"{_ASIDE}{self.prefix}adapter"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)  # its parents must be there: a mistyped path is not made
            aside.mkdir()
            policy.save_adapter(aside)
            digest = hashlib.sha256()
            for file in sorted(aside.iterdir()):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
            name = f"{self.prefix}{digest.hexdigest()[:12]}"
            if not (self.folder / name).exists():
                aside.rename(self.folder / name)
        except OSError as error:
            raise UserError(
                f"sampling.versions_folder: {self.folder} cannot be written: {error.strerror}; name a folder that this "
                "machine may write and the servers see under the same path"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return name

    def path(self, name: str) -> str:
        """Where a version lies, on this machine and on those of the servers."""
        return str(self.folder / name)

    def keep(self, names: Sequence[str]) -> None:
        """Delete all of ours but these."""
        for place in self.folder.glob(f"{self.prefix}*"):
            if place.name not in names:
                shutil.rmtree(place, ignore_errors=True)
