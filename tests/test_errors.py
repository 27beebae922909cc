"""How a program ends early, and how near one word is to another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupwise.errors import UserError, edit_distance, exit_with_user_errors, nearest


def test_user_errors_end_a_program_with_code_2_and_no_traceback(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended, exit_with_user_errors():
        raise UserError("a.yaml:1: bad\na.yaml:2: worse")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a.yaml:1: bad\n       a.yaml:2: worse\n"


def test_interrupts_end_a_program_with_code_130_and_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended, exit_with_user_errors():
        raise KeyboardInterrupt
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_other_errors_propagate():
    with pytest.raises(ZeroDivisionError), exit_with_user_errors():
        _ = 1 / 0


short = st.text("ab", max_size=6)


@settings(deadline=None)
@given(short, short, short)
def test_edit_distance_against_first_principles(a: str, b: str, c: str):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    assert edit_distance(c + a, c + b) == edit_distance(a, b)  # what two words share costs nothing


def test_nearest_prefers_fewer_edits_then_the_first():
    assert nearest("adm", ["adam", "adamw"]) == "adam"
    assert nearest("lr", ["lx", "ly"]) == "lx"
    assert nearest("completely", ["different"]) is None
    assert nearest("x", []) is None
