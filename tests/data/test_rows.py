"""read_rows: every row of a source with a key that finds it, or all that is wrong with the source."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupwise.data.rows import read_rows, source_hash
from groupwise.errors import UserError

ROWS: list[dict[str, object]] = [
    {"prompt": "Héllo\u2028there", "n": 1},
    {"prompt": "b", "n": None},
    {"prompt": "c", "n": 3},
]


def _write_jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")


def _write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\r\n" for row in ROWS).encode()))


def _write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS), encoding="utf-8")


def _write_parquet(path: Path) -> None:
    library: Any = datasets
    library.Dataset.from_list(ROWS).to_parquet(str(path))


@pytest.mark.parametrize(
    ("name", "write", "keys"),
    [
        ("x.jsonl", _write_jsonl, ["x.jsonl:1", "x.jsonl:2", "x.jsonl:3"]),
        ("x.jsonl.gz", _write_gzip, ["x.jsonl.gz:1", "x.jsonl.gz:2", "x.jsonl.gz:3"]),
        ("x.json", _write_json, ["x.json:row 1", "x.json:row 2", "x.json:row 3"]),
        ("x.parquet", _write_parquet, ["x.parquet:row 1", "x.parquet:row 2", "x.parquet:row 3"]),
    ],
)
def test_every_kind_of_file_holds_the_same_rows(
    name: str, write: Callable[[Path], None], keys: list[str], tmp_path: Path
) -> None:
    write(tmp_path / name)
    rows = read_rows(str(tmp_path / name))
    assert [row.values for row in rows] == ROWS
    assert [row.key for row in rows] == [f"{tmp_path}/{key}" for key in keys]
    assert read_rows(str(tmp_path / name), limit=2) == rows[:2]


def test_csv_cells_are_text_and_a_key_is_the_line_where_the_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('\ufeffprompt,score\n"two\nlines",1\n\nb,0.5\n', encoding="utf-8")
    assert [(row.key, row.values) for row in read_rows(str(path))] == [
        (f"{path}:2", {"prompt": "two\nlines", "score": "1"}),
        (f"{path}:5", {"prompt": "b", "score": "0.5"}),
    ]


def test_blank_lines_and_a_byte_order_mark_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"a": 2}')
    assert [row.key for row in read_rows(str(path))] == [f"{path}:1", f"{path}:4"]


def test_all_malformed_lines_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": }\n[1]\n{"a": "\xff"}\n{"a": 1, "a": 2}\n{"a": 2}\n{"a": 1\n' + b"[" * 100_000)
    with pytest.raises(UserError) as raised:
        read_rows(str(path))
    text = str(raised.value)
    assert f"{path}: 6 lines are malformed" in text
    assert f"{path}:2: not JSON at column 7" in text
    assert f"{path}:3: a line holds one JSON object, this one a list" in text
    assert f"{path}:4: byte 8 is not UTF-8" in text
    assert f"{path}:5: the key 'a' stands twice" in text
    assert f"{path}:7: not JSON" in text
    assert f"{path}:8: nested too deeply" in text
    assert f"{path}:6" not in text


def test_a_thousand_malformed_lines_are_twenty_and_a_count(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("oops\n" * 1000)
    with pytest.raises(UserError) as raised:
        read_rows(str(path))
    lines = str(raised.value).splitlines()
    assert lines[-1] == "... and 980 more" and len(lines) == 22 and f"{path}:20: " in lines[-2]


@given(lines=st.lists(st.sampled_from(['{"a": 1}', "", "nonsense", "3"]), min_size=1, max_size=30))
def test_a_jsonl_gives_all_rows_or_names_each_bad_line(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    path.write_text("\n".join(lines) + "\n")
    bad = [number for number, line in enumerate(lines, start=1) if line in ("nonsense", "3")]
    good = [number for number, line in enumerate(lines, start=1) if line == '{"a": 1}']
    if good and not bad:
        assert [row.key for row in read_rows(str(path))] == [f"{path}:{number}" for number in good]
        return
    with pytest.raises(UserError) as raised:
        read_rows(str(path))
    named = [int(line.split(":")[1]) for line in str(raised.value).splitlines()[1:] if not line.startswith("...")]
    assert named == bad[:20]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"", "the file is empty"),
        ("x.jsonl", b"\n \n", "has no rows"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON"),
        ("x.json", b" ", "the file is empty"),
        ("x.json", b"[]", "has no rows"),
        ("x.json", b'{"a": 1}', "holds a list of objects, this one an object"),
        ("x.json", b'[{"a": 1}, 2, null]', "x.json:row 2: a row is an object, this one a number"),
        ("x.json", b'[{"a": 1}, 2, null]', "x.json:row 3: a row is an object, this one null"),
        ("x.json", b'[\n{"a" 1}]', "not JSON at line 2, column 6"),
        ("x.json", b'{"a": 1}\n{"a": 2}', "named .jsonl"),
        ("x.json", b'["\xff"]', "byte 3 is not UTF-8"),
        ("x.csv", b"", "the file is empty"),
        ("x.csv", b"a,b\n1\n1,2\n1,2,3\n", "x.csv:4: has 3 cells, the header 2"),
        ("x.csv", b"a,b\n1\n1,2\n1,2,3\n", "x.csv:2: has 1 cells, the header 2"),
        ("x.csv", b"a,a\n1,2\n", "'a' stands twice"),
        ("x.csv", b"a\n\xff\n", "not UTF-8"),
        ("x.csv", b'a\n"open\n', "not a CSV file"),
        ("x.parquet", b"PAR1 but no more", "not a whole Parquet file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-9], "not a whole gzip file"),
        ("x.jsonl.gz", b'{"a": 1}\n', "not a whole gzip file"),
        ("x.txt", b"hello", "unknown kind; give one that ends in .jsonl, .jsonl.gz"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_rows(str(tmp_path / name))
    assert said in str(raised.value) and str(tmp_path / name) in str(raised.value)


def test_a_missing_file_is_answered_with_the_nearest_names(tmp_path: Path) -> None:
    for name in ("reviews.jsonl", "reviews_heldout.jsonl", "zebra.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"reviws\.jsonl: no such file; .* has reviews\.jsonl, reviews_heldout\.jsonl$"):
        read_rows(str(tmp_path / "reviws.jsonl"))
    with pytest.raises(UserError, match="the folder .*nowhere does not exist either"):
        read_rows(str(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(UserError, match=r"is a folder; name a file in it: reviews\.jsonl"):
        read_rows(str(tmp_path))


def test_the_split_of_a_local_file_is_its_column(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"n": 1, "split": "train"}, {"n": 2, "split": "heldout"}, {"n": 3, "split": "train"}]))
    assert [row.key for row in read_rows(str(path), split="train")] == [f"{path}:row 1", f"{path}:row 3"]
    assert [row.key for row in read_rows(str(path), split="heldout", limit=5)] == [f"{path}:row 2"]
    with pytest.raises(UserError, match="no row is of split 'test'; it has heldout, train"):
        read_rows(str(path), split="test")
    path.write_text('[{"n": 1}]')
    with pytest.raises(UserError, match="has no column 'split'"):
        read_rows(str(path), split="train")


def test_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"abc")  # the test vector of FIPS 180-2
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert source_hash(str(tmp_path / "x.jsonl")) == expected
    assert source_hash("owner/name") is None
    with pytest.raises(UserError, match="no such file"):
        source_hash(str(tmp_path / "y.jsonl"))


class _Hub:
    """Stands for datasets.load_dataset: remembers what was asked, answers with two splits."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str | None]] = []

    def __call__(self, repo: str, config: str | None, *, split: str | None) -> Any:
        self.asked.append((repo, config, split))
        library: Any = datasets
        splits = {
            name: library.Dataset.from_list([{"of": name, "n": n} for n in range(3)]) for name in ("train", "test")
        }
        return splits if split is None else splits[split]


def test_hub_rows_have_the_data_set_and_split_in_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    rows = read_rows("owner/name:main", split="test", limit=2)
    assert [(row.key, row.values) for row in rows] == [
        ("owner/name:main[test]:1", {"of": "test", "n": 0}),
        ("owner/name:main[test]:2", {"of": "test", "n": 1}),
    ]
    assert hub.asked == [("owner/name", "main", "test")]
    with pytest.raises(UserError, match="has the splits train, test; say which one"):
        read_rows("owner/name")


def test_no_network_is_said_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand a second line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"owner/name: cannot be read from the hub: Couldn't reach the Hub; .*network"):
        read_rows("owner/name", split="train")


def test_a_misspelt_local_name_never_asks_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    for source in ("nowhere/x.jsonl", "./owner/name", "/owner/name", "name"):
        with pytest.raises(UserError, match="no such file"):
            read_rows(source)
    assert hub.asked == []
