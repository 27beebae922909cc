"""Runs several configurations of GRPO one after the other in this process; started by tests, not a test itself."""

import sys

from grpo import train_grpo

if __name__ == "__main__":
    for config in sys.argv[1:]:
        train_grpo.main(["--config", config])
