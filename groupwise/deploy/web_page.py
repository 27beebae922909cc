"""The conversation as a page on this machine alone, base and tuned side by side, made with Gradio.

Completions are the values of text boxes: they are shown as text, never as HTML or Markdown. Nothing is shared, sent or
fetched: no tunnel, no analytics, no fonts from elsewhere. Knows no model.
"""

import importlib.util
import os
from collections.abc import Generator
from typing import Any

from groupwise.deploy.speaker import VOICES, Answer, Dice, Speaker, Turn, Voice
from groupwise.errors import UserError, printable

HOST = "127.0.0.1"


def require_gradio() -> None:
    """Raise UserError where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("--web: Gradio is not installed; pip install '.[web]', or talk in the terminal without --web")


def serve(speaker: Speaker, dice: Dice, *, title: str, port: int) -> None:
    """Show the page until Ctrl-C. Raises UserError where the port is taken."""
    try:
        open_page(speaker, dice, title=title, port=port).block_thread()
    except KeyboardInterrupt:
        return


def open_page(speaker: Speaker, dice: Dice, *, title: str, port: int | None = None) -> Any:
    """The Gradio page, served by a thread of its own; `.local_url` is its address, `.close()` ends it.

    Without a port a free one is taken. Raises UserError where the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr
    from gradio import themes

    form = speaker.form
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        # A label is text to Gradio's text boxes; a heading would be Markdown, and a run's name is data.
        gr.Textbox("\n".join(form.lines()), label=title, interactive=False, lines=1, max_lines=4)
        turns = gr.State(list[Turn]())
        with gr.Row():
            columns = [
                gr.Textbox(label=voice, elem_id=voice, lines=12, max_lines=30, interactive=False, autoscroll=True)
                for voice in VOICES
            ]
        typed = gr.Textbox(label="your text", elem_id="typed", lines=2, max_lines=8, submit_btn="send")
        with gr.Row():
            temperature = gr.Number(dice.temperature, label="temperature", minimum=0, step=0.1)
            seed = gr.Number(dice.seed, label="seed", minimum=0, precision=0)
            forget = gr.Button("new conversation")
        said = gr.Textbox(label="notes", elem_id="notes", interactive=False, lines=1)

        def ask(
            prompt: str, temperature: float, seed: int, before: list[Turn]
        ) -> Generator[tuple[str, str, list[Turn], str, str], None, None]:
            if not prompt.strip():
                yield *_shown(before), before, prompt, "type a text first"
                return
            answers: dict[Voice, Answer] = {}
            try:
                chosen = Dice(float(temperature), int(seed))
                for voice in VOICES:
                    text = ""
                    pieces = speaker.answer(voice, before, prompt, chosen)
                    while voice not in answers:
                        try:
                            text += next(pieces)
                        except StopIteration as end:
                            answers[voice] = end.value
                            break
                        so_far: dict[Voice, Answer] = {**answers, voice: Answer(text, tokens=0)}
                        shown = _shown([*before, Turn(prompt, chosen, so_far)])
                        yield *shown, before, prompt, f"the {voice} model answers"
            except UserError as error:
                yield *_shown(before), before, prompt, printable(str(error))
                return
            after = [*before, Turn(prompt, chosen, answers)]
            cut = [f"{voice}: cut, {answer.cut}" for voice, answer in answers.items() if answer.cut]
            yield *_shown(after), after, "", "; ".join(cut)

        # One answer at a time, whoever asks: base and tuned are one network with its adapter off and on.
        gr.on(
            [typed.submit],
            ask,
            [typed, temperature, seed, turns],
            [*columns, turns, typed, said],
            concurrency_limit=1,
            api_visibility="private",
            show_progress="hidden",
        )
        forget.click(lambda: ("", "", list[Turn](), ""), None, [*columns, turns, said], api_visibility="private")
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            theme=themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            ssr_mode=False,
            footer_links=[],
            mcp_server=False,
            enable_monitoring=False,
            quiet=True,
        )
    except OSError as error:
        raise UserError(f"--port: {error}") from error
    print(f"open {page.local_url} in a browser; Ctrl-C ends it")
    return page


def _shown(turns: list[Turn]) -> tuple[str, str]:
    """What each of the two columns says, base first."""
    base, tuned = (
        "\n\n".join(f"> {turn.prompt}\n{turn.answers[voice].text if voice in turn.answers else ''}" for turn in turns)
        for voice in VOICES
    )
    return printable(base), printable(tuned)
