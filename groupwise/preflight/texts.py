"""Groups as the model will see them, trained tokens marked, and what is wrong at the ends of texts.

Knows nothing about where groups come from.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from groupwise.data.text import Message, TextEncoder
from groupwise.errors import printable
from groupwise.groups import Group, named
from groupwise.preflight.report import Report

OPEN, CLOSE = "[[", "]]"
_MOST_SHOWN = 1200  # characters of one text


def marked(group: Group, tokenizer: PreTrainedTokenizerBase, console: Console) -> Text:
    """Prompt and completions with their special tokens; what is trained is bold, off a terminal between [[ and ]]."""
    text = Text.assemble(("prompt", "dim"), f"  {_shown(group.prompt_ids, tokenizer)}")
    for number, completion in enumerate(group.completions, start=1):
        end = "" if completion.finished else " (cut, no end-of-sequence token)"
        text.append(f"\ncompletion {number}, score {completion.score:g}{end}", style="dim")
        words = _shown(completion.token_ids, tokenizer)
        if console.is_terminal and not console.no_color:
            text.append("  ").append(words, style="bold green")
        else:
            text.append(f"  {OPEN}{words}{CLOSE}")
    return text


def _shown(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = printable(str(tokenizer.decode(list(token_ids), skip_special_tokens=False)))
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[: _MOST_SHOWN // 2]} ... {text[-_MOST_SHOWN // 2 :]}"


def check_ends(
    groups: Sequence[Group], encoder: TextEncoder, model_config: Any, report: Report, *, answered: bool = True
) -> None:
    """Doubled beginnings, missing ends, and a tokenizer that ends texts otherwise than the model was taught.

    `answered`: the groups hold completions of the data; otherwise only their prompts are looked at.
    """
    tokenizer = encoder.tokenizer
    begin = tokenizer.bos_token_id
    if begin is not None:
        doubled = [group for group in groups if list(group.prompt_ids[:2]) == [begin, begin]]
        if doubled:
            report.error(
                f"{len(doubled)} prompts begin with {tokenizer.bos_token!r} twice: {named(doubled)}; the data (or the "
                "template of the data) writes what the tokenizer or the chat template adds: remove it from the data"
            )
        looked_at = groups if answered and begin not in encoder.stop_ids else ()
        inside = [group for group in looked_at if any(begin in c.token_ids for c in group.completions)]
        if inside:
            report.error(
                f"{len(inside)} completions hold {tokenizer.bos_token!r}, which begins a text: {named(inside)}; remove "
                "it from the data"
            )
    completions = [completion for group in groups for completion in group.completions] if answered else []
    endless = sum(completion.token_ids[-1] not in encoder.stop_ids for completion in completions)
    if endless:
        share = endless / len(completions)
        say = report.warning if share > 0.1 else report.ok
        say(
            f"{endless} of {len(completions)} completions ({share:.0%}) have no end-of-sequence token, for they are "
            "cut; a model that mostly sees cut texts learns not to stop"
        )
    elif completions:
        report.ok(f"every completion ends with one of {_names(encoder.stop_ids, tokenizer)}, which is trained too")
    ends = _as_set(getattr(model_config, "eos_token_id", None))
    if ends and not ends & encoder.stop_ids:
        report.warning(
            f"the model's configuration ends texts with {_names(ends, tokenizer)}, the tokenizer with "
            f"{_names(encoder.stop_ids, tokenizer)}; set eos_token in tokenizer_config.json to what the model "
            "was taught"
        )


def tell_leaks(leaked: Sequence[str], heldout: int, report: Report) -> None:
    """Say which of so many held-out prompts are trained on; `leaked` are their keys."""
    if leaked:
        report.warning(f"{len(leaked)} of {heldout} held-out prompts are trained on, for example {leaked[0]}")
    else:
        report.ok("no held-out prompt is trained on")


def check_template(encoder: TextEncoder, report: Report) -> None:
    """Whether the chat template ends an assistant's turn; to be asked where the data holds chat messages."""
    if encoder.turn_end is None:
        report.warning(
            "the chat template writes no end-of-sequence token behind an assistant's words; completions are trained to "
            f"end with {encoder.tokenizer.eos_token!r}, so whoever uses the model must stop there; add it to the "
            "template"
        )
    else:
        report.ok(f"the chat template ends an assistant's turn with {encoder.turn_end!r}")


def holds_messages(prompt: str | Sequence[Message]) -> bool:
    """Whether a prompt goes through the chat template."""
    return not isinstance(prompt, str)


def _as_set(ids: int | Sequence[int] | None) -> frozenset[int]:
    if ids is None:
        return frozenset()
    return frozenset({ids} if isinstance(ids, int) else ids)


def _names(ids: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ids))
