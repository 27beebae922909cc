"""The page in a real browser: two answers side by side, shown as text, and nothing fetched from elsewhere."""

import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dpo.config import DpoConfig
from groupwise.config import load_config
from groupwise.deploy.speaker import Dice, Speaker
from groupwise.errors import UserError
from groupwise.train.run_folder import RunFolder
from scripts.chat import load_speaker
from tests.browser import chromium_page
from tests.deploy.parrot import Parrot, as_speaker

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"> **b** \x1b[2J"


@contextmanager
def opened(speaker: Speaker, *, title: str = "a run") -> Generator[tuple[Any, list[str]], None, None]:
    """The page in a browser, and what it asked other machines for."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    from groupwise.deploy.web_page import open_page

    with chromium_page() as (page, outside):
        served = open_page(speaker, Dice(0.9, 0), title=title)
        try:
            assert served.local_url.startswith("http://127.0.0.1:") and served.share_url is None
            page.goto(served.local_url)
            yield page, outside
        finally:
            served.close()


def send(page: Any, text: str) -> None:
    page.locator("#typed textarea").fill(text)
    page.locator("#typed button").click()


def answered(page: Any) -> None:
    """Wait until both models have spoken: then the text that was sent leaves its box."""
    page.wait_for_function("document.querySelector('#typed textarea').value === ''")


def shows(page: Any, element: str, text: str) -> None:
    """Wait until a text box holds the text."""
    page.wait_for_function(
        "([id, text]) => document.querySelector(`#${id} textarea, #${id} input`).value.includes(text)",
        arg=[element, text],
    )


def test_a_prompt_gets_two_answers(finished_run: Path) -> None:
    folder = RunFolder.finished(finished_run)
    speaker = load_speaker(folder, load_config(DpoConfig, folder.config), "auto")
    with opened(speaker, title=str(finished_run)) as (page, outside):
        send(page, "We saw film number 3.")
        answered(page)
        base, tuned = (page.locator(f"#{voice} textarea").input_value() for voice in ("base", "tuned"))
        assert base.startswith("> We saw film number 3.\n") and tuned.startswith("> We saw film number 3.\n")
        assert base != tuned and min(len(base), len(tuned)) > 30
        send(page, "a" * 500)
        shows(page, "notes", "128 positions")
    assert outside == []


def test_what_a_model_writes_is_text_to_the_browser() -> None:
    parrot = Parrot(HOSTILE)
    with opened(as_speaker(parrot), title="<b>run</b>") as (page, outside):
        send(page, "hi")
        shows(page, "tuned", HOSTILE.replace("\x1b", " "))
        shows(page, "base", HOSTILE.replace("\x1b", " "))
        shows(page, "notes", "base: cut, too tired")
        assert page.title() == "<b>run</b>"
        assert page.locator("img[src=x]").count() == 0
        send(page, "more")
        answered(page)
        assert [(voice, before) for voice, before, *_ in parrot.heard] == [
            ("base", 0), ("tuned", 0), ("base", 1), ("tuned", 1),
        ]  # fmt: skip
    assert outside == []


def test_a_port_that_is_taken_is_named() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    from groupwise.deploy.web_page import open_page

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            open_page(as_speaker(Parrot("")), Dice(0.9, 0), title="run", port=taken.getsockname()[1])
