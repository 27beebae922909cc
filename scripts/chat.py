"""Talk to the tuned model of a finished run, and to its base, in the terminal or on a page of your own machine.

    python scripts/chat.py runs/dpo-reviews
    echo "We saw it on Friday." | python scripts/chat.py runs/dpo-reviews
    python scripts/chat.py runs/dpo-reviews --web

Knows both methods' configurations; neither how answers are drawn nor how they are shown. Reads no training data.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpo.config import DpoConfig
from groupwise.config import load_matching_config
from groupwise.errors import UserError, exit_with_user_errors
from groupwise.train.run_folder import RunFolder
from grpo.config import GrpoConfig

if TYPE_CHECKING:
    from groupwise.deploy.speaker import Speaker

Config = DpoConfig | GrpoConfig


def main(argv: Sequence[str]) -> None:
    """Read the command line, load the run, talk."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/dpo-reviews")
    parser.add_argument("--web", action="store_true", help="a page on 127.0.0.1 instead; needs pip install '.[web]'")
    parser.add_argument("--port", type=int, default=7860, help="of the page")
    parser.add_argument(
        "--prompts",
        choices=("auto", "text", "chat"),
        default="auto",
        help="how your text reaches the model; auto: as the run's held-out prompts were written",
    )
    args = parser.parse_args(argv)
    folder = RunFolder.finished(args.run)
    config = load_matching_config((DpoConfig, GrpoConfig), folder.config)
    if args.web:
        from groupwise.deploy.web_page import require_gradio

        require_gradio()
    # Torch and Transformers take seconds to import, and mistakes on the command line should not wait for them.
    from groupwise.deploy.speaker import Dice

    notes = Console(stderr=True)
    speaker = load_speaker(folder, config, args.prompts)
    dice = Dice(config.sampling.temperature, config.run.seed)
    if args.web:
        from groupwise.deploy.web_page import serve

        serve(speaker, dice, title=str(folder.path), port=args.port)
        return
    from groupwise.deploy.terminal import Conversation

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no sign for a character shows another
    conversation = Conversation(speaker, dice, answers=Console(), notes=notes)
    if sys.stdin.isatty():
        conversation.introduce()
        conversation.hear(typed_lines())
        return
    for line in speaker.form.lines():
        notes.print(line, markup=False, highlight=False, soft_wrap=True)
    conversation.hear(sys.stdin)
    if conversation.refused:
        raise UserError(f"{conversation.refused} lines of the input were refused")


def load_speaker(folder: RunFolder, config: Config, prompts: str) -> "Speaker":
    """Base and tuned model of a run, and how it wrote its prompts. Raises UserError."""
    from groupwise.data.text import TextEncoder
    from groupwise.deploy.prompt_form import PromptForm, bears_chat_template, common_ending
    from groupwise.deploy.speaker import Speaker
    from groupwise.deploy.trained import held_out_samples, load_trained
    from groupwise.model.drawing import SamplingParams
    from groupwise.model.engine import LogprobEngine

    held_out = [sample.prompt for sample in held_out_samples(folder)]
    trained = load_trained(folder, config)
    encoder = TextEncoder(
        trained.policy.tokenizer,
        max_prompt_tokens=sys.maxsize,  # the model's own positions decide
        max_completion_tokens=config.sampling.max_new_tokens,
    )
    chat = bears_chat_template(encoder, held_out) if prompts == "auto" else prompts == "chat"
    if chat and not encoder.has_chat_template:
        raise UserError(f"--prompts chat: the tokenizer of {config.model.path} has no chat template; use text")
    form = PromptForm(chat=chat, ending="" if chat else common_ending(held_out))
    if isinstance(config, GrpoConfig):
        form = replace(form, template=config.data.template, system=config.data.system)
    engine = LogprobEngine(trained.policy, config.model.attention, autocast=trained.runtime.autocast)
    return Speaker(engine, encoder, form, SamplingParams.of(config.sampling))


def typed_lines() -> Iterator[str]:
    """What a person types, line by line, with a history and editing where the system has them."""
    with contextlib.suppress(ImportError):
        import readline as _  # noqa: F401  editing and history come with its import
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
