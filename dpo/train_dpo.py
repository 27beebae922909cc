"""Train with DPO: `python dpo/train_dpo.py [--config my.yaml] [--loss.beta 0.2]`. Knows only the command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dpo.config import DpoConfig
from groupwise.config import read_command_line
from groupwise.errors import exit_with_user_errors

DEFAULT = Path("configs/dpo_config.yaml")


def main(argv: Sequence[str]) -> None:
    """Read the command line, then train, or with --check look at everything and leave."""
    command = read_command_line(
        DpoConfig,
        argv,
        default_path=DEFAULT,
        description="Direct Preference Optimization: learn from preference pairs or rankings.",
        epilog="The same command again continues a run that was stopped. dpo/README.md explains every figure.",
        flags={"check": "Look at configuration, data, model, memory and time; write and train nothing."},
    )
    # Torch and Transformers take seconds to import, and mistakes on the command line should not wait for them.
    if "check" in command.flags:
        from dpo.check import check

        raise SystemExit(check(command.config))
    from dpo.dpo_trainer import train

    train(command.config)


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
