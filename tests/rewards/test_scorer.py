"""A reward that goes wrong costs what the policy says, no more, and never the run: the table of faults.

The time limits are short and a hang is ten minutes long, so what docs/rewards.md promises of time is far from a fault
that is not caught, on a busy machine too.
"""

import contextlib
import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from groupwise.errors import UserError
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import RewardFailure, Scorer
from groupwise.rewards.wire import FaultKind
from groupwise.sections import RewardSection
from tests.rewards.asking import POISON, Policy, faulty, group, rows_of, scoring, within_stated_time

KINDS: dict[str, FaultKind] = {
    "raise": "raised",
    "sleep": "timed out",
    "end": "died",
    "segfault": "died",
    "nan": "not finite",
    "inf": "not finite",
    "text": "not a number",
    "too_few": "wrong count",
    "too_many": "wrong count",
}
TIME_LIMIT = {fault: 0.4 if kind == "timed out" else 10.0 for fault, kind in KINDS.items()}


def poisoned(place: int) -> list[Answer]:
    """A healthy group of two and one of three with poison at that place."""
    texts = ["fine"] * 3
    texts[place] = POISON
    return group(["fine", "fine"], 0) + group(texts, 1)


# --- the table: what goes wrong x where x policy ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def scorer_for() -> Iterator[Callable[[str, str, Policy], Scorer]]:
    """One scorer for all cases of a reward, fault and policy: it must go on after each of them."""
    with contextlib.ExitStack() as stack:
        made: dict[tuple[str, str, Policy], Scorer] = {}

        def get(function: str, fault: str, policy: Policy) -> Scorer:
            key = function, fault, policy
            if key not in made:
                other = RewardSection(name="length", weight=2.0, options={"scale": 1})
                limits = scoring(policy, time_limit=TIME_LIMIT[fault])
                made[key] = stack.enter_context(Scorer([faulty(function, fault=fault), other], limits))
            return made[key]

        yield get


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("policy", ["skip", "zero", "fail"])
@pytest.mark.parametrize("fault", KINDS)
def test_a_fault_costs_what_the_policy_says(
    scorer_for: Callable[[str, str, Policy], Scorer], fault: str, policy: Policy, place: int
) -> None:
    scorer, answers = scorer_for("faulty", fault, policy), poisoned(place)
    lost = {2, 3, 4} if KINDS[fault] == "wrong count" else {2 + place}
    faults_before = scorer.fault_count
    if policy == "fail":
        with (
            within_stated_time(TIME_LIMIT[fault], asked_again=3),
            pytest.raises(RewardFailure, match=f"faulty {KINDS[fault]}") as failure,
        ):
            scorer.score(rows_of(answers), answers)
        assert "question 1" in str(failure.value)
        assert (POISON in str(failure.value)) or len(lost) > 1
    else:
        with within_stated_time(TIME_LIMIT[fault], asked_again=3):
            result = scorer.score(rows_of(answers), answers)
        lengths = [len(answer.text) for answer in answers]
        assert result.by_reward["faulty"] == tuple(None if i in lost else 1.0 for i in range(5))
        assert result.by_reward["length"] == tuple(lengths)
        without = None if policy == "skip" else 0.0
        expected = [(without if i in lost else 1.0, 2.0 * lengths[i]) for i in range(5)]
        assert result.totals == tuple(None if first is None else first + rest for first, rest in expected)
        assert [(f.reward, f.kind, f.index, f.prompt, f.completion) for f in result.faults] == [
            ("faulty", KINDS[fault], i, "question 1", answers[i].text) for i in sorted(lost)
        ]
    assert scorer.fault_count == faults_before + len(lost)


@pytest.mark.parametrize("fault", ["raise", "sleep", "end", "segfault", "too_many"])
@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_without_the_mark_the_whole_group_is_at_fault(
    scorer_for: Callable[[str, str, Policy], Scorer], fault: str, policy: Policy
) -> None:
    answers = poisoned(1)
    result = scorer_for("faulty_group", fault, policy).score(rows_of(answers), answers)
    assert result.by_reward["faulty_group"] == (1.0, 1.0, None, None, None)
    assert [(f.kind, f.index) for f in result.faults] == [(KINDS[fault], i) for i in (2, 3, 4)]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("exit", "raised"),
        ("sleep_deaf", "timed out"),
        ("hold_the_interpreter", "timed out"),
        ("close_everything", "died"),
        ("huge", "not finite"),
        ("list", "not a number"),
        ("one_number", "wrong count"),
        ("endless", "wrong count"),
        ("mapping", "wrong count"),
        ("nothing", "wrong count"),
    ],
)
def test_crooked_ways_to_fail(fault: str, kind: FaultKind) -> None:
    with Scorer([faulty("faulty_group", fault=fault)], scoring(time_limit=0.4)) as scorer:
        with within_stated_time(0.4, asked_again=0):
            first = scorer.score(rows_of(group([POISON])), group([POISON]))
        assert [f.kind for f in first.faults] == [kind]
        assert first.totals == (None,)
        assert scorer.score(rows_of(group(["fine"])), group(["fine"])).totals == (1.0,)


# --- what messages say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", ("ZeroDivisionError: the reward's own bug", "faulty_rewards.py:")),
        ("sleep", ("no answer within 0.4 s", "faulty_rewards.py", "in _sleep")),
        ("end", ("exit status 3",)),
        ("segfault", ("SIGSEGV", "in _segfault")),
        ("nan", ("returned nan",)),
        ("text", ("returned '1'",)),
        ("too_few", ("returned 2 scores for 3 completions",)),
        ("too_many", ("returned more than 3 scores",)),
    ],
)
def test_messages_say_what_happened(
    scorer_for: Callable[[str, str, Policy], Scorer], fault: str, words: Sequence[str]
) -> None:
    answers = poisoned(0)
    fault_of_first = scorer_for("faulty", fault, "skip").score(rows_of(answers), answers).faults[0]
    for word in words:
        assert word in fault_of_first.message


def test_the_end_of_what_a_dying_reward_wrote_is_quoted() -> None:
    with Scorer([faulty("floods_then_raises")], scoring()) as scorer:
        fault = scorer.score(rows_of(group(["x"])), group(["x"])).faults[0]
    assert fault.message.endswith("last words") and len(fault.message) < 3000


# --- fail after k -----------------------------------------------------------------------------------------------------


def test_fail_stops_at_the_first_fault_too_many_and_skips_until_then() -> None:
    answers = group([POISON, "fine"])
    with Scorer([faulty("faulty", fault="nan")], scoring("fail", after=2)) as scorer:
        for _ in range(2):
            assert scorer.score(rows_of(answers), answers).totals == (None, 1.0)
        with pytest.raises(RewardFailure, match="3 completions .* allows 2"):
            scorer.score(rows_of(answers), answers)


def test_a_run_that_goes_on_keeps_its_count() -> None:
    answers = group([POISON])
    with (
        Scorer([faulty("faulty", fault="nan")], scoring("fail", after=2), faults_before=2) as scorer,
        pytest.raises(RewardFailure, match="3 completions"),
    ):
        scorer.score(rows_of(answers), answers)


# --- what a reward is given, and what may come back -------------------------------------------------------------------


def test_a_reward_sees_rows_completions_and_options() -> None:
    row = {"prompt": [{"role": "user", "content": "2+2="}], "when": datetime.date(2024, 2, 29), "odd": "\ud800", "n": 1}
    answer = Answer(text="4", token_ids=(3, 0), finished=False, group=5)
    with Scorer([faulty("sees", mood="good")], scoring()) as scorer:
        fault = scorer.score([row], [answer]).faults[0]
    arrived = [{**row, "when": "2024-02-29"}]
    assert f"rows={arrived!r} completions={[answer]!r} options={{'mood': 'good'}}" in fault.message
    assert fault.prompt == "user: 2+2="


def test_a_column_of_bytes_is_refused_by_name() -> None:
    with Scorer([faulty("sees")], scoring()) as scorer, pytest.raises(UserError, match="column 'picture'.*bytes.*drop"):
        scorer.score([{"prompt": "x", "picture": b"\x00"}], group(["x"]))


def test_booleans_are_numbers_and_none_is_no_opinion() -> None:
    answers = group(["x"] * 5)
    with Scorer([faulty("mixed")], scoring()) as scorer:
        result = scorer.score(rows_of(answers), answers)
    assert result.totals == (1.0, 0.0, None, 2.0, 0.5)
    assert result.faults == ()


def test_an_opinion_is_missing_only_when_all_have_none() -> None:
    answers = group(["xy"] * 3)
    rewards = [faulty("mixed"), RewardSection(name="length", weight=-0.5, options={"scale": 1})]
    with Scorer(rewards, scoring()) as scorer:
        assert scorer.score(rows_of(answers), answers).totals == (0.0, -1.0, -1.0)


def test_a_reward_of_weight_zero_is_shown_and_not_counted() -> None:
    answers = group([POISON, "fine"])
    rewards = [faulty("faulty", fault="nan"), RewardSection(name="length", options={"scale": 1})]
    rewards[0] = rewards[0].model_copy(update={"weight": 0.0})
    with Scorer(rewards, scoring()) as scorer:
        result = scorer.score(rows_of(answers), answers)
    assert result.totals == (6.0, 4.0)
    assert result.by_reward["faulty"] == (None, 1.0)
    assert scorer.fault_count == 1


def test_a_sum_never_leaves_float32() -> None:
    # 1e30 is a fine float64 and so is the weight; the float32 advantages would be infinite.
    rewards = [RewardSection(name="length", weight=1e30, options={"scale": 1e-30})]
    with Scorer(rewards, scoring()) as scorer:
        result = scorer.score(rows_of(group(["x"])), group(["x"]))
    assert [fault.kind for fault in result.faults] == ["not finite"]
    assert result.totals == (None,)


@pytest.mark.parametrize("workers", [1, 3])
def test_scores_come_in_the_order_of_the_completions(workers: int) -> None:
    answers = [answer for number in range(12) for answer in group([str(10 * number), str(10 * number + 1)], number)]
    rows = [{"prompt": "", "number": int(answer.text)} for answer in answers]
    with Scorer([faulty("place"), faulty("place")], scoring(workers=workers)) as scorer:
        result = scorer.score(rows, answers)
    assert scorer.names == ("place", "place#2")
    assert result.totals == tuple(2.0 * row["number"] for row in rows if isinstance(row["number"], int))


def test_random_numbers_belong_to_the_input() -> None:
    answers = group(["a", "b"], 0) + group(["c", "d"], 1)
    found: list[Sequence[float | None]] = []
    for workers in (1, 2):
        with Scorer([faulty("draws")], scoring(workers=workers)) as scorer:
            found += [scorer.score(rows_of(answers), answers).totals for _ in range(2)]
    assert found == [found[0]] * 4
    assert len(set(found[0])) == 4


def test_several_workers_share_the_groups(tmp_path: Path) -> None:
    """A second process takes a group while the first one is busy; a pool that asks in turn would let it wait."""
    answers = [answer for number in range(20) for answer in group(["x"], number)]
    with Scorer([faulty("meets", folder=str(tmp_path))], scoring(workers=2, time_limit=60)) as scorer:
        result = scorer.score([{"prompt": ""}] * 20, answers)
    assert result.faults == () and result.totals == (2.0,) * 20


@pytest.mark.parametrize("numbers", [(0, 1, 0), (0, 0)])
def test_wrong_calls_are_refused(numbers: Sequence[int]) -> None:
    answers = [answer for number in numbers for answer in group(["x"], number)]
    with Scorer([faulty("draws")], scoring()) as scorer, pytest.raises(ValueError, match="stand next to|rows for"):
        scorer.score([{"prompt": ""}] * 3, answers)


# --- refused by the row -----------------------------------------------------------------------------------------------


def test_a_missing_column_stops_the_run_and_names_those_there_are() -> None:
    words = r"rewards\[1\] \(exact_answer\): the row has no column 'solution'.*it has: prompt, answer"
    rewards = [RewardSection(name="length"), RewardSection(name="exact_answer", options={"column": "solution"})]
    with Scorer(rewards, scoring()) as scorer, pytest.raises(UserError, match=words):
        scorer.score(rows_of(group(["x"])), group(["x"]))


# --- answers that poison a comparison ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exact_answer", "numeric_answer", "math_answer"])
@pytest.mark.parametrize("digits", ["9" * 100_000, "0." + "1" * 100_000, "1e999999999", "1/" + "3" * 100_000])
def test_an_answer_of_100_000_digits_is_wrong_and_no_fault(
    name: str, digits: str, scorer_of: Callable[[str], Scorer]
) -> None:
    answers = group([f"#### {digits}", "#### 18", rf"#### {digits}\boxed{{{digits}}}"])
    result = scorer_of(name).score(rows_of(answers), answers)
    assert result.faults == ()
    assert result.totals == (0.0, 1.0, 0.0)


def test_a_power_tower_costs_only_itself(scorer_of: Callable[[str], Scorer]) -> None:
    answers = group([r"\boxed{\frac{36}{2}}", r"\boxed{9^{9^{9^9}}}"], 0) + group(["#### 9^{9^{9^9}}"], 1)
    result = scorer_of("math_answer").score(rows_of(answers), answers)
    assert result.totals == (1.0, None, None)
    assert [(fault.kind, fault.index) for fault in result.faults] == [("timed out", 1), ("timed out", 2)]


def test_a_flat_power_tower_is_wrong_and_in_time(scorer_of: Callable[[str], Scorer]) -> None:
    answers = group(["#### 9^9^9^9", r"\boxed{9^9^9^9}"])
    assert scorer_of("math_answer").score(rows_of(answers), answers).totals == (0.0, 0.0)


def test_catastrophic_backtracking_is_killed() -> None:
    answers = group(["a" * 40 + "!", "aaa"])
    with Scorer([RewardSection(name="regex_format", options={"pattern": "(a+)+"})], scoring(time_limit=0.5)) as scorer:
        result = scorer.score(rows_of(answers), answers)
    assert result.totals == (None, 1.0)
    assert [fault.kind for fault in result.faults] == ["timed out"]


@pytest.fixture(scope="module")
def scorer_of() -> Iterator[Callable[[str], Scorer]]:
    with contextlib.ExitStack() as stack:
        made: dict[str, Scorer] = {}

        def get(name: str) -> Scorer:
            if name not in made:
                if name == "math_answer":
                    pytest.importorskip("math_verify", reason="math_answer needs pip install 'groupwise[math]'")
                made[name] = stack.enter_context(Scorer([RewardSection(name=name)], scoring(time_limit=1.5)))
            return made[name]

        yield get


# --- weight of an import ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["groupwise.rewards.scorer", "groupwise.rewards.worker"])
def test_neither_side_of_the_pipe_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
