"""The name that a wrong key was meant to be."""

import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.config.example import KEYS, M, problems


@st.composite
def slips(draw: st.DrawFn) -> tuple[str, str]:
    """A dotted key and the same with one letter of its last part changed, dropped, added, or swapped with the next."""
    key = draw(st.sampled_from(KEYS))
    section, _, name = key.rpartition(".")
    letters = st.sampled_from(string.ascii_letters + string.digits + "_-")
    i = draw(st.integers(0, len(name) - 1))
    slip = draw(
        st.one_of(
            letters.map(lambda letter: name[:i] + letter + name[i + 1 :]),
            letters.map(lambda letter: name[:i] + letter + name[i:]),
            st.just(name[:i] + name[i + 1 :]),
            st.just(name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :]),
        ).filter(lambda slip: slip != name)
    )
    return key, f"{section}.{slip}"


@settings(deadline=None)
@given(slips())
def test_any_slip_in_a_key_is_refused_and_the_right_key_suggested(tmp_path_factory: Any, slip: tuple[str, str]):
    key, wrong = slip
    section, _, name = wrong.rpartition(".")
    folder = tmp_path_factory.getbasetemp()
    in_file = problems(folder, f"{'' if section == 'model' else M}{section}:\n  {name}: 1\n")
    assert any(line.endswith(f": {wrong}: unknown key; did you mean {key}?") for line in in_file)
    assert problems(folder, M, f"--{wrong}", "1") == [f"--{wrong}: unknown key; did you mean --{key}?"]
