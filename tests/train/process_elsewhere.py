"""One of several processes, each on a machine of its own as far as files go; started by tests, not a test itself.

Runs GRPO in `FOLDER/RANK`, so that what a configuration names by a relative path is another file for every process.
A file `flags` there has arguments that this process alone is given, one a line.
"""

import os
import sys
from pathlib import Path

from groupwise.errors import exit_with_user_errors
from grpo import train_grpo


def main(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder / os.environ["RANK"])
    own = Path("flags")
    with exit_with_user_errors():
        train_grpo.main([*arguments, *(own.read_text().splitlines() if own.is_file() else [])])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
