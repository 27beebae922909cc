"""Two conversations that begin alike: what they share is the prompt, the rest is chosen and rejected.

Knows neither rows nor scores.
"""

from collections.abc import Sequence

from dpo.formats import BadRow
from groupwise.data.text import Message, Text

ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." that begin alike.

    The prompt ends right behind the last "\\n\\nAssistant:" that both share, so it never ends inside a word, however
    the answers begin. The three parts hold every character of the transcripts. Raises ValueError if none is shared.

    >>> split_transcripts("\\n\\nHuman: Sky?\\n\\nAssistant: Blue.", "\\n\\nHuman: Sky?\\n\\nAssistant: Black.")
    ('\\n\\nHuman: Sky?\\n\\nAssistant:', ' Blue.', ' Black.')
    """
    start = chosen.rfind(ASSISTANT)
    while start >= 0:
        end = start + len(ASSISTANT)
        if rejected.startswith(chosen[:end]):
            return chosen[:end], chosen[end:], rejected[end:]
        start = chosen.rfind(ASSISTANT, 0, start)
    raise BadRow(
        f"chosen and rejected share no {ASSISTANT!r}, so no prompt can be told; write both as transcripts with "
        "Human and Assistant turns, or add a column prompt"
    )


def split_messages(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected) of two conversations that differ in their last message, an assistant's."""
    shared = min(len(chosen), len(rejected)) - 1
    same = next((i for i in range(shared) if chosen[i] != rejected[i]), shared)
    if len(chosen) != len(rejected) or same < shared:
        raise BadRow(
            f"chosen and rejected part at message {same + 1}, before the last one; cut both to a shared beginning and "
            "one answer each"
        )
    if not same:
        raise BadRow("chosen and rejected are one message each, so no prompt is left; add the messages before it")
    return list(chosen[:same]), list(chosen[same:]), list(rejected[same:])


def conversations_with_prompt(
    prompt: str, chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[Text, Text, Text]:
    """Some data sets repeat the prompt: as a text, and again as the beginning of both conversations."""
    messages, chosen, rejected = split_messages(chosen, rejected)
    asked = messages[-1].get("content")
    if not isinstance(asked, str) or asked.strip() != prompt.strip():
        raise BadRow("prompt is not the message that chosen and rejected answer; leave it out or make them agree")
    return messages, chosen, rejected


def has_further_turns(*answers: str) -> bool:
    """Whether an answer of a transcript goes on with another turn, since the transcripts part before the last."""
    return any(marker in text for marker in (ASSISTANT, HUMAN) for text in answers)
