"""Train with GRPO: `python grpo/train_grpo.py [--config my.yaml] [--steps 200]`. Knows only the command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from groupwise.config import read_command_line
from groupwise.errors import exit_with_user_errors
from grpo.config import GrpoConfig

DEFAULT = Path("configs/grpo_config.yaml")


def main(argv: Sequence[str]) -> None:
    """Read the command line, then train, or with --check look at everything and leave."""
    command = read_command_line(
        GrpoConfig,
        argv,
        default_path=DEFAULT,
        description="Group Relative Policy Optimization: learn from the scores of the model's own answers.",
        epilog="The same command again continues a run that was stopped. grpo/README.md explains every figure.",
        flags={"check": "Look at configuration, data, model, memory and time; write and train nothing."},
    )
    # Torch and Transformers take seconds to import, and mistakes on the command line should not wait for them.
    if "check" in command.flags:
        from grpo.check import check

        raise SystemExit(check(command.config))
    from grpo.grpo_trainer import train

    train(command.config)


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
