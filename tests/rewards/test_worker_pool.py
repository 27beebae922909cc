"""Worker processes end when they should, with all that they have started, and rewards that do not load are told of."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from groupwise.errors import UserError
from groupwise.rewards.scorer import Scorer
from groupwise.sections import RewardSection, ScoringSection
from tests.rewards.asking import FAULTY, POISON, faulty, group, is_gone, rows_of, scoring, within_stated_time

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
