"""What `--check` says of several processes and of servers is what the cost model says, with its assumptions."""

import io

import pytest
from rich.console import Console

from groupwise.cost.machine import GLOO, prior
from groupwise.cost.network import rollout_bytes, rollout_exchanges, step_bytes, step_exchanges
from groupwise.cost.shapes import GroupShape, ModelShape
from groupwise.cost.work import forward, learn, sampling
from groupwise.preflight.report import Report
from groupwise.preflight.timing import Speed, busiest, tell_network, tell_servers
from groupwise.sections import Sharding

SHAPE = ModelShape(
    layers=4, width=64, vocabulary=500, heads=4, kv_heads=4, head_width=16, linear=4 * 12 * 64**2,
    adapter=9000, adapted=16,
)  # fmt: skip
LONG, SHORT = GroupShape(20, (50, 50)), GroupShape(20, (10, 10))
STEP = [LONG, SHORT, SHORT, SHORT]


def speed(processes: int, sharding: Sharding = "none", slower: float = 2.0) -> Speed:
    """A machine that takes twice as long for everything as the one that was fitted."""
    return Speed.of_trial(
        SHAPE,
        "cpu",
        learned=([SHORT], slower * prior("rows", "cpu").seconds(learn(SHAPE, [SHORT]))),
        drawn=([LONG], slower * prior("sampling", "cpu").seconds(sampling(SHAPE, [LONG], rows_at_once=64))),
        tokens_per_forward=1,
        rows_at_once=64,
        recompute=False,
        processes=processes,
        sharding=sharding,
    )


def said(report: Report) -> str:
    return "\n".join(finding.text for finding in report.findings)


@pytest.fixture
def report() -> Report:
    return Report(Console(file=io.StringIO()))


def test_the_busiest_process_decides_and_sharded_layers_make_all_wait() -> None:
    """Seconds of one process, divided by their number, would forget whoever has the longest group."""
    one, two, spread = speed(1), speed(2), speed(2, "fsdp2")
    assert one.reading([LONG]) == pytest.approx(2 * prior("rows", "cpu").seconds(forward(SHAPE, [LONG])))
    assert two.learning(STEP) == pytest.approx(max(one.learning([LONG]), one.learning([SHORT] * 3)))
    assert two.learning(STEP) > one.learning(STEP) / 2
    # One has the long group, the other the short ones: whole weights meet at the end, spread ones after each.
    assert spread.reading(STEP) == pytest.approx(one.reading([LONG]) + 2 * one.reading([SHORT]))
    assert two.reading(STEP) == pytest.approx(max(one.reading([LONG]), one.reading([SHORT] * 3)))


def test_a_trial_that_is_dealt_is_the_work_of_who_has_most() -> None:
    """The seconds of a part, taken for those of all groups, made a machine look twice as fast in two processes."""
    assert busiest(STEP, 2) == [LONG] and busiest(STEP, 1) == STEP
    assert busiest([SHORT] * 5, 2) == [SHORT] * 3


def test_a_server_is_taken_to_be_as_much_slower_as_this_machine_is() -> None:
    asked = [LONG] * 6
    assert speed(1).served(asked, 2) == pytest.approx(2 * speed(1, slower=1.0).served(asked, 2))
    assert speed(1).served(asked, 2) == pytest.approx(speed(1).served(asked[:3], 1))
    assert speed(1).served(asked[:1], 2) == speed(1).served(asked[:1], 1), "a server that has nothing to do"


def test_bytes_and_exchanges_are_said_and_the_network_is_not_pretended_to_be_known(report: Report) -> None:
    tell_network(speed(2, "fsdp2"), report, learned=STEP, read=[SHORT], sent=STEP, fields=3)
    sent = step_bytes(SHAPE, processes=2, sharding="fsdp2", learning=3, reading=1)
    sent += rollout_bytes([LONG, SHORT], processes=2, fields=3)
    met = step_exchanges(SHAPE, processes=2, sharding="fsdp2", learning=3, reading=1)
    met += rollout_exchanges(processes=2, sharding="fsdp2")
    assert f"{sent / 1e6:,.1f} MB" in said(report) and f"in {met} exchanges" in said(report)
    assert "left out" in said(report) and "network is unknown" in said(report)
    assert f"{GLOO.s_per_byte * sent + GLOO.s_per_exchange * met:.2g} s a step" in said(report)


def test_nothing_is_said_of_exchanges_that_are_not_ours_or_of_a_network_that_nobody_uses(report: Report) -> None:
    tell_network(speed(1), report, learned=STEP)
    assert not report.findings
    tell_network(speed(2, "zero3"), report, learned=STEP)
    assert "unknown" in said(report) and " in 0 exchanges" not in said(report)


def test_a_group_that_would_wait_longer_than_it_may_is_said(report: Report) -> None:
    """All groups of a large rollout are asked at once, so each waits for nearly all of them; the limit then ends it."""
    asked = [LONG] * 200
    whole = speed(4).served(asked, 2)
    tell_servers(speed(4), report, groups=asked, servers=2, at_once=64, answer_limit=0.9 * whole)
    assert "raise sampling.answer_limit" in said(report) and "each answers 100 of the 200" in said(report)
    report.findings.clear()
    tell_servers(speed(4), report, groups=asked, servers=2, at_once=1, answer_limit=0.9 * whole)
    assert "answer_limit" not in said(report), "four of a hundred at a time"
