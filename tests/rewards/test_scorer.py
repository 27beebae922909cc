"""A reward that goes wrong costs what the policy says, no more, and never the run: the table of faults.

The time limits are short and a hang is ten minutes long, so what docs/rewards.md promises of time is far from a fault
that is not caught, on a busy machine too.
"""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest

from groupwise.errors import UserError
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import RewardFailure, Scorer
from groupwise.rewards.wire import FaultKind
from groupwise.sections import RewardSection, ScoringSection

FAULTY = Path(__file__).with_name("faulty_rewards.py")
POISON = "poison"
Policy = Literal["skip", "zero", "fail"]
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


def faulty(function: str, **options: object) -> RewardSection:
    return RewardSection(name=f"{FAULTY}:{function}", options=options)


def scoring(policy: Policy = "skip", *, time_limit: float = 10.0, workers: int = 1, after: int = 0) -> ScoringSection:
    return ScoringSection(on_fault=policy, time_limit=time_limit, workers=workers, fail_after=after)


def group(texts: Sequence[str], number: int = 0) -> list[Answer]:
    return [Answer(text=text, token_ids=(7,) * len(text), finished=True, group=number) for text in texts]


def rows_of(answers: Sequence[Answer]) -> list[dict[str, object]]:
    return [{"prompt": f"question {answer.group}", "answer": "18"} for answer in answers]


def poisoned(place: int) -> list[Answer]:
    """A healthy group of two and one of three with poison at that place."""
    texts = ["fine"] * 3
    texts[place] = POISON
    return group(["fine", "fine"], 0) + group(texts, 1)


def is_gone(pid: int) -> bool:
    """Whether a process has ended within five seconds; a zombie that nobody has collected has."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def within_stated_time(time_limit: float, *, asked_again: int) -> Generator[None]:
    """time_limit + 1 s, as much for each completion asked again, and 10 s for each new process."""
    started = time.monotonic()
    yield
    calls = 1 + asked_again
    assert time.monotonic() - started < calls * (time_limit + 1 + 10)


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


# --- children, parents, pipes -----------------------------------------------------------------------------------------


def test_a_child_of_a_hanging_reward_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "children"
    with Scorer([faulty("spawns", note=str(note), hang=True)], scoring(time_limit=0.5)) as scorer:
        with within_stated_time(0.5, asked_again=0):
            result = scorer.score(rows_of(group(["x"])), group(["x"]))
        assert [fault.kind for fault in result.faults] == ["timed out"]
        children = [int(line) for line in note.read_text().split()]
        assert children and all(is_gone(child) for child in children)


def test_a_child_that_is_left_behind_ends_with_the_scorer(tmp_path: Path) -> None:
    note = tmp_path / "children"
    with Scorer([faulty("spawns", note=str(note), hang=False)], scoring()) as scorer:
        assert scorer.score(rows_of(group(["x"])), group(["x"])).totals == (1.0,)
        (child,) = [int(line) for line in note.read_text().split()]
        assert Path(f"/proc/{child}").exists()
    assert is_gone(child)


def test_a_reward_that_forks_and_returns_twice_answers_once() -> None:
    # The second process would answer too, and from then on every answer would be the one to the question before.
    with Scorer([faulty("forks")], scoring()) as scorer:
        for size in (1, 2, 3):
            answers = group(["x"] * size)
            assert scorer.score(rows_of(answers), answers).totals == (1.0,) * size


def test_what_a_reward_prints_is_no_answer() -> None:
    with Scorer([faulty("prints")], scoring()) as scorer:
        for _ in range(2):
            assert scorer.score(rows_of(group(["x"])), group(["x"])).totals == (1.0,)


def test_a_worker_that_dies_while_idle_is_no_fault() -> None:
    answers = group(["x"])
    with Scorer([faulty("process_id")], scoring()) as scorer:
        (pid,) = scorer.score(rows_of(answers), answers).totals
        assert pid is not None
        os.kill(int(pid), signal.SIGKILL)
        assert is_gone(int(pid))
        result = scorer.score(rows_of(answers), answers)
        assert result.faults == () and result.totals != (pid,)


def test_closing_ends_the_workers() -> None:
    scorer = Scorer([faulty("process_id")], scoring())
    (pid,) = scorer.score(rows_of(group(["x"])), group(["x"])).totals
    assert pid is not None and int(pid) != os.getpid()
    scorer.close()
    assert is_gone(int(pid))
    scorer.close()  # twice does no harm


def test_ctrl_c_waits_for_no_reward() -> None:
    answers = group([POISON])
    with Scorer([faulty("faulty", fault="sleep")], scoring(time_limit=300.0, workers=2)) as scorer:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            scorer.score(rows_of(answers), answers)
        assert time.monotonic() - begin < 30  # a tenth of the limit
        with pytest.raises(RuntimeError, match="closed"):
            scorer.score(rows_of(answers), answers)


@pytest.mark.parametrize("hanging", [False, True], ids=["idle", "hanging"])
def test_a_worker_does_not_outlive_a_killed_parent(tmp_path: Path, hanging: bool) -> None:
    note = tmp_path / "pid"
    reward = tmp_path / "slow.py"
    reward.write_text(
        textwrap.dedent(f"""
            import os, time
            from pathlib import Path
            def slow(rows, completions):
                Path({str(note)!r} + ".new").write_text(str(os.getpid()))
                os.rename({str(note)!r} + ".new", {str(note)!r})
                time.sleep({600 if hanging else 0})
                return [1.0]
            """)
    )
    program = textwrap.dedent(f"""
        import time
        from groupwise.rewards.protocol import Answer
        from groupwise.rewards.scorer import Scorer
        from groupwise.sections import RewardSection, ScoringSection
        scorer = Scorer([RewardSection(name={f"{reward}:slow"!r})], ScoringSection(time_limit=1.0))
        scorer.score([{{"prompt": ""}}], [Answer(text="", token_ids=(), finished=True, group=0)])
        time.sleep(600)
        """)
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        while not note.exists():
            assert parent.poll() is None
            time.sleep(0.02)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert is_gone(int(note.read_text()))


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


def test_several_workers_share_the_groups() -> None:
    answers = [answer for number in range(20) for answer in group(["x"], number)]
    rows = [{"prompt": "", "number": 0}] * 20
    with Scorer([faulty("process_id"), faulty("place")], scoring(workers=2)) as scorer:
        assert len(set(scorer.score(rows, answers).by_reward["process_id"])) == 2


@pytest.mark.parametrize("numbers", [(0, 1, 0), (0, 0)])
def test_wrong_calls_are_refused(numbers: Sequence[int]) -> None:
    answers = [answer for number in numbers for answer in group(["x"], number)]
    with Scorer([faulty("draws")], scoring()) as scorer, pytest.raises(ValueError, match="stand next to|rows for"):
        scorer.score([{"prompt": ""}] * 3, answers)


# --- refused before anything is trained -------------------------------------------------------------------------------


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_is_not_there\n")
    rewards = [
        RewardSection(name="exact_anser"),
        RewardSection(name="soft_overlong", options={"max_tokens": "256", "cash_tokens": 64}),
        RewardSection(name="soft_overlong", options={"max_tokens": 10, "cache_tokens": 11}),
        RewardSection(name="regex_format", options={"pattern": "("}),
        RewardSection(name=f"{tmp_path}/nowhere.py:reward"),
        RewardSection(name=f"{broken}:reward"),
        faulty("drws"),
        faulty("faulty"),
        faulty("draws", mood="good"),
        faulty("asynchronous"),
        faulty("AClass"),
        faulty("takes_one"),
        faulty("draws", mood=Path("x")),
        faulty("draws"),
    ]
    with pytest.raises(UserError) as error:
        Scorer(rewards, scoring())
    lines = str(error.value).splitlines()
    expected = [
        "rewards[0].name: there is no built-in reward 'exact_anser'; did you mean exact_answer?",
        "rewards[1].options.cash_tokens: unknown option; did you mean cache_tokens?",
        "rewards[1].options.cache_tokens: soft_overlong needs it",
        "rewards[1].options.max_tokens: should be a valid integer, got '256'",
        "rewards[2].options.cache_tokens: must be at least 1 and at most max_tokens, got 11",
        "rewards[3].options.pattern: is no regular expression: missing ), unterminated subpattern at position 0",
        f"rewards[4].name: there is no file '{tmp_path}/nowhere.py'",
        f"rewards[5].name: {broken} cannot be run: ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        f"rewards[6].name: {FAULTY} has no function 'drws'; did you mean draws?",
        f"rewards[7].options.fault: {FAULTY}:faulty needs it",
        f"rewards[8].options.mood: unknown option; {FAULTY}:draws takes none",
        f"rewards[9].name: {FAULTY}:asynchronous is an async function; a reward is an ordinary function",
        f"rewards[10].name: {FAULTY}:AClass is a class; name a function, or an object made from the class",
        f"rewards[11].name: {FAULTY}:takes_one must take (rows, completions), it takes ",
        "rewards[12].options: must be made of text, numbers, true, false, null, lists and mappings: ",
    ]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import time; time.sleep(600)", "timed out"),
        ("import os; os._exit(5)", "exit status 5"),
        ("raise SystemExit", "cannot be run: SystemExit"),
    ],
)
def test_a_file_that_does_not_load_is_told(tmp_path: Path, code: str, words: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(f"{code}\ndef reward(rows, completions): ...\n")
    with pytest.raises(UserError, match=rf"rewards\[0\].*{words}"):
        Scorer([RewardSection(name=f"{file}:reward")], ScoringSection(load_limit=2.0))


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
