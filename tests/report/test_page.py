"""The report: every figure is that of the files, hostile text stays text, large runs stay openable, all parts work."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from groupwise.errors import UserError
from groupwise.report.curves import MOST_POINTS, thinned
from groupwise.report.page import write_report
from groupwise.report.prompts import word_differences
from groupwise.report.transcripts import spread_transcripts
from scripts import report
from scripts.report import read_any as read
from tests.browser import chromium_page
from tests.report.made_runs import HOSTILE, grpo_run


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def open_page(page: Any, path: Path) -> None:
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-ready=yes]")


def test_the_page_holds_what_the_files_hold(tmp_path: Path) -> None:
    page = write_report(read(grpo_run(tmp_path / "run"))).read_text(encoding="utf-8")
    data = data_of(page)
    curve = next(one for one in data["charts"]["Is it learning?"] if one["title"] == "Reward of rollouts")
    assert curve["x"] == list(range(1, 31))
    assert curve["series"][0]["y"] == [pytest.approx(step / 30, rel=1e-4) for step in range(1, 31)]
    held_out = next(one for one in data["charts"]["Is it learning?"] if one["title"].startswith("Held-out"))
    assert [y for y in held_out["series"][0]["y"] if y is not None] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert data["ways"]["steps"] == ["before", "6", "12", "18", "24", "30", "after"]
    assert [row["values"][-1] for row in data["ways"]["rows"]] == [1.0] * 12
    assert [one["step"] for one in data["transcripts"]] == list(range(1, 31))
    assert "50 %" in page and "100 %" in page, "the figures before and after"
    assert re.search(r'class="changed"><th>steps</th>.*?30', page) and "rows read" in page
    assert "backward pass takes most, 40 % of the time" in page


def test_a_run_before_servers_shows_how_far_they_were_from_the_engine(tmp_path: Path) -> None:
    """A run that servers sampled and one that sampled by itself: only the first has something to show."""
    folder, own = grpo_run(tmp_path / "served"), grpo_run(tmp_path / "own")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        gap = {"sampler/gap": row["step"] / 1000, "sampler/gap_largest": row["step"] / 100, "sampler_weight": 0.9}
        row |= gap | {"servers/up": 2 - (row["step"] > 20), "servers/faults": 0, "servers/asked_again": 3}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts = data_of(write_report(read(folder)).read_text(encoding="utf-8"))["charts"]["Is the sampler right?"]
    drawn = {line["label"]: line["y"] for chart in charts for line in chart["series"]}
    assert drawn["mean"][4] == 0.005 and drawn["largest"][4] == 0.05 and drawn["weight"] == [0.9] * 30
    assert drawn["servers"] == [2] * 20 + [1] * 10 and drawn["groups asked again"] == [3] * 30
    page = write_report(read(own)).read_text(encoding="utf-8")
    assert "Is it healthy?</h2>" in page and "Is the sampler right?</h2>" not in page


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    page = write_report(read(grpo_run(tmp_path / "run"))).read_text(encoding="utf-8")
    without_data = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!#)', without_data)
    assert "default-src 'none'" in html.unescape(page) and "unsafe-inline" not in page


def test_nothing_in_a_completion_is_executed(tmp_path: Path) -> None:
    """A peer's viewer ran scripts out of completions. Prompts, keys, reasons, names of data all carry the corpus."""
    with chromium_page() as (page, outside):
        messages: list[str] = []
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: messages.append(str(error)))
        # The first text is also in keys, reasons, names of metrics and data, and in the verdict.
        for number, first in enumerate((" ".join(HOSTILE), *HOSTILE[:2])):
            texts = [first, *HOSTILE]
            path = write_report(read(grpo_run(tmp_path / f"run{number}", texts=texts, prompts=20, steps=10)))
            open_page(page, path)
            page.fill("#search", "prompt")
            page.locator("details summary").first.click()
            for step in range(10):
                page.locator("#step").evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", step)
            page.locator("#ways").hover()
            page.locator("#ways").click(position={"x": 20, "y": 3})
            assert page.evaluate("window.hacked") is None, first
            assert page.locator("#groups .text").first.text_content() == first, "the text is there as it is"
            assert page.evaluate("document.querySelectorAll('iframe, #compared img, #groups script, form').length") == 0
        assert outside == [] and messages == []


def test_every_part_of_a_page_works(tmp_path: Path) -> None:
    run = grpo_run(tmp_path / "run", prompts=40, steps=60, right_after=0.6)
    with chromium_page() as (page, outside):
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.set_viewport_size({"width": 1280, "height": 900})
        open_page(page, write_report(read(run)))
        assert page.locator(".uplot").count() == len(page.query_selector_all(".chart")) >= 10
        over = page.locator(".u-over").first
        over.hover(position={"x": 100, "y": 60})
        assert re.search(r"\d", page.locator(".u-legend .u-value").first.text_content() or ""), "hover tells the step"
        box = over.bounding_box()
        page.mouse.move(box["x"] + 60, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 160, box["y"] + 60, steps=4)
        page.mouse.up()
        # --- before and after

        def gains() -> list[float]:
            shown: list[str] = page.eval_on_selector_all("#compared article", "a => a.map(x => x.dataset.gain)")
            return [float(gain) for gain in shown]

        visible = lambda: page.locator("#compared article:visible").count()  # noqa: E731
        assert visible() == 20
        page.click("[data-sort=better]")
        assert gains() == sorted(gains(), reverse=True) and len(set(gains())) > 1
        page.click("[data-sort=worse]")
        assert gains() == sorted(gains())
        page.click("#more")
        assert visible() == 40
        page.fill("#search", "prompt 17")
        assert visible() == 1
        page.fill("#search", "")
        page.locator("article:visible details summary").first.click()
        assert page.locator("article:visible details li:visible").count() == 8
        # --- what it learned
        tall = page.locator("#ways").bounding_box()["height"]
        page.locator("[data-way]:not([data-way=''])").first.click()
        assert page.locator("#ways").bounding_box()["height"] < tall
        page.click("[data-way='']")
        page.locator("#ways").hover(position={"x": 30, "y": 10})
        assert "data.jsonl:1" in page.locator("#wayinfo").text_content()
        page.locator("#ways").click(position={"x": 30, "y": 10})
        assert page.locator("article.marked").get_attribute("data-key") == "data.jsonl:1"
        # --- completions
        page.locator("#step").evaluate("s => { s.value = s.max; s.dispatchEvent(new Event('input')); }")
        assert page.locator("#stepnumber").text_content() == "60"
        page.locator("#step").evaluate("s => { s.value = 0; s.dispatchEvent(new Event('input')); }")
        assert "all rewards are equal" in page.locator("#groups .reason").text_content()
        # --- phone, dark, print
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            for scheme in ("dark", "light"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                ink, paper = page.evaluate(
                    "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
                )
                assert (sum(map(int, re.findall(r"\d+", ink))) > sum(map(int, re.findall(r"\d+", paper)[:3]))) == (
                    scheme == "dark"
                )
        page.emulate_media(media="print")
        assert page.locator("nav").is_hidden()
        assert errors == [] and outside == []


def test_a_run_that_goes_on_has_a_report(tmp_path: Path) -> None:
    run = grpo_run(tmp_path / "run")
    for name in ("summary.json", "samples.jsonl"):
        (run / name).unlink()
    page = write_report(read(run)).read_text(encoding="utf-8")
    assert "Not finished: 30 steps are done" in page
    assert data_of(page)["ways"]["steps"] == ["6", "12", "18", "24", "30"]


def test_a_large_run_gives_a_page_that_can_be_opened(tmp_path: Path) -> None:
    texts = [f"{word} " * 120 for word in ("many", "more", "most", "words")]
    run = grpo_run(tmp_path / "run", texts=texts, prompts=5000, steps=10_000, samples=2)
    path = write_report(read(run))
    assert path.stat().st_size < 15_000_000
    data = data_of(path.read_text(encoding="utf-8"))
    assert data["transcripts"][-1]["step"] == 10_000 and len(data["charts"]["Is it learning?"][0]["x"]) <= MOST_POINTS
    page = path.read_text(encoding="utf-8")
    assert "Each point is the mean of 3 logged steps" in page and "of 5000 prompts" in page
    assert f"Groups of {len(data['transcripts'])} of the 10000 steps" in page
    with chromium_page() as (browser, _):
        open_page(browser, path)
        assert browser.locator(".uplot").count() >= 10


def test_means_of_neighbours_keep_the_mean() -> None:
    rows = [{"step": float(step), "loss": float(step % 7)} for step in range(1, 3 * MOST_POINTS + 1)]
    merged, width = thinned(rows)
    assert width == 3 and len(merged) == MOST_POINTS and merged[-1]["step"] == rows[-1]["step"]
    mean = sum(row["loss"] for row in rows) / len(rows)
    assert sum(row["loss"] for row in merged) / len(merged) == pytest.approx(mean)


def test_transcripts_are_spread_evenly_and_keep_the_last(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    path.write_text("".join(json.dumps({"step": step, "key": "x" * 90}) + "\n" for step in range(1, 101)))
    spread = spread_transcripts(path, most_bytes=1200)
    steps = [group["step"] for group in spread.groups]
    assert steps[-1] == 100 and spread.written == 100 and spread.shown == len(steps) <= 11
    assert {b - a for a, b in zip(steps, steps[1:], strict=False)} == {steps[1] - steps[0]}
    path.write_text('{"step": 1}\nhello\n')
    with pytest.raises(UserError, match="transcripts.jsonl:2"):
        spread_transcripts(path, most_bytes=10)


@pytest.mark.parametrize(("before", "after"), [("", "a b"), ("a  b\nc", "a b c"), ("same", "same"), ("x " * 900, "y")])
def test_differences_leave_both_texts_whole(before: str, after: str) -> None:
    old, new, change = word_differences(before, after)
    assert "".join(piece.text for piece in old) == before and "".join(piece.text for piece in new) == after
    assert (change == 0) == (before == after)


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = grpo_run(tmp_path / "good", prompts=30)
    poor = grpo_run(tmp_path / "poor", prompts=30, right_after=0.3, beta=0.5)
    out = tmp_path / "pages" / "comparison.html"
    report.main([str(poor), str(good), "--out", str(out)])
    page = out.read_text(encoding="utf-8")
    assert re.search(r"good is better than poor: \+0\.7", page)
    assert re.search(r"loss.kl_coefficient</th><td[^>]*>0.5</td><td[^>]*>0.04", page)
    data = data_of(page)
    assert [point["name"] for point in data["frontier"]["points"]] == ["poor", "good"]
    assert [point["gain"] for point in data["frontier"]["points"]] == [0.3, 1.0]
    assert [one["label"] for one in data["charts"]["Is it learning?"][0]["series"]] == ["poor", "good"]
    with chromium_page() as (browser, outside):
        errors: list[str] = []
        browser.on("pageerror", lambda error: errors.append(str(error)))
        open_page(browser, out)
        assert browser.locator(".uplot").count() >= 10 and errors == [] and outside == []


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    run = grpo_run(tmp_path / "run")
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "config.yaml: is missing"),
        ([str(run), str(run)], "named twice"),
    ):
        with pytest.raises(UserError, match=words):
            report.main(arguments)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics.jsonl: is missing"):
        report.main([str(run)])
