"""Rows of a file or hub data set, each with a key people can look up. Knows nothing about what the columns mean.

Every row of a source is returned or the source is refused: nothing is skipped here but blank lines.
"""

import csv
import difflib
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from groupwise.errors import UserError, first_line, listed

HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it came from: "data/x.jsonl:17" (line), "data/x.parquet:row 17" or "owner/name[train]:17".

    Lines and rows are counted from 1.
    """

    key: str
    values: dict[str, object]

    def at(self, path: str) -> object:
        """The value at a column, or at a dotted path into objects and lists ("answers.0.text"); LookupError if none.

        >>> Row("x:1", {"answers": [{"text": "18"}]}).at("answers.0.text")
        '18'
        """
        if path in self.values:
            return self.values[path]
        value: object = self.values
        for part in path.split("."):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(cast(list[object], value)):
                value = cast(list[object], value)[int(part)]
            else:
                raise LookupError(path)
        return value


def read_rows(source: str, *, split: str | None = None, limit: int | None = None) -> list[Row]:
    """The rows of a .jsonl, .jsonl.gz, .json (list of objects), .csv or .parquet file, or of a hub data set.

    A hub data set is written "owner/name", or "owner/name:configuration"; `split` chooses its split. Of a local file
    `split` keeps the rows whose column "split" says so. `limit` keeps the first rows only, and reads no further. The
    values of a .csv are always text, it knows no types.
    Raises UserError for a source that is missing, empty or malformed, with every malformed line.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.jsonl"
    >>> _ = path.write_text('{"prompt": "Hi"}\\n\\n{"prompt": "Ho"}\\n')
    >>> [(row.key.rpartition("/")[2], row.values) for row in read_rows(str(path))]
    [('x.jsonl:1', {'prompt': 'Hi'}), ('x.jsonl:3', {'prompt': 'Ho'})]
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    path = Path(source)
    if path.is_file():
        rows = _reader_of(source)(source)
        if split is not None:
            rows = _rows_of_split(source, rows, split)
        found = list(islice(rows, limit))
    elif (name := HUB_NAME.fullmatch(source)) and not path.exists() and not _suffix(source):
        found = _hub_rows(source, name["repo"], name["config"], split, limit)
    else:
        raise UserError(_missing(path))
    if not found:
        raise UserError(f"{source}: has no rows; give a source with at least one")
    return found


def source_hash(source: str) -> str | None:
    """SHA-256 of a local file's bytes, in hexadecimal; None for a hub data set, which is no single file here."""
    path = Path(source)
    if not path.is_file():
        if HUB_NAME.fullmatch(source) and not path.exists() and not _suffix(source):
            return None
        raise UserError(_missing(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffix(source: str) -> str | None:
    """The ending of a file name that says how to read it."""
    return next((suffix for suffix in READERS if source.lower().endswith(suffix)), None)


def _reader_of(source: str) -> Callable[[str], Iterator[Row]]:
    suffix = _suffix(source)
    if suffix is None:
        raise UserError(f"{source}: a file of unknown kind; give one that ends in {', '.join(READERS)}")
    return READERS[suffix]


def _missing(path: Path) -> str:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if _suffix(file.name))
        return f"{path}: is a folder; name a file in it{': ' + ', '.join(inside[:5]) if inside else ''}"
    return f"{path}: no such file; {_nearest_files(path)}"


def _nearest_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or [name for name in names if _suffix(name)][:3]
    return f"{folder} has {', '.join(near)}" if near else f"{folder} has no file like it"


def _rows_of_split(source: str, rows: Iterable[Row], split: str) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if "split" not in row.values:
            raise UserError(
                f"{row.key}: split {split!r} was asked for, but the row has no column 'split'; leave the split out "
                "(null) for this file, or add the column"
            )
        seen.add(str(row.values["split"]))
        if row.values["split"] == split:
            yield row
    if split not in seen:
        raise UserError(f"{source}: no row is of split {split!r}; it has {', '.join(sorted(seen)) or 'no rows'}")


# --- JSON lines: our own reader, because an error needs the line


class _Malformed(Exception):
    """What is wrong with one line."""


def _jsonl_rows(source: str) -> Iterator[Row]:
    """Rows up to the first malformed line; then the rest is read for problems only, and all of them are raised."""
    problems: list[str] = []
    for number, line in enumerate(_lines(source), start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # the mark some editors put first
        if not line.strip():
            continue
        try:
            values = _object_of(line)
        except _Malformed as malformed:
            problems.append(f"{source}:{number}: {malformed}")
        else:
            if not problems:
                yield Row(f"{source}:{number}", values)
    if problems:
        noun = "line is" if len(problems) == 1 else "lines are"
        raise UserError(
            f"{source}: {len(problems)} {noun} malformed; mend or remove what is listed\n{listed(problems)}"
        )


def _lines(source: str) -> Iterator[bytes]:
    if Path(source).stat().st_size == 0:
        raise UserError(f"{source}: the file is empty")
    if not source.lower().endswith(".gz"):
        with open(source, "rb") as file:
            yield from file
        return
    try:
        with gzip.open(source, "rb") as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{source}: not a whole gzip file ({error}); copy or download it again") from error


def _object_of(line: bytes) -> dict[str, object]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Malformed(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    value = _parsed(text)
    if not isinstance(value, dict):
        raise _Malformed(f"a line holds one JSON object, this one {_kind(value)}")
    return cast(dict[str, object], value)


def _parsed(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise _Malformed(f"not JSON at {where}: {error.msg}") from error
    except RecursionError as error:
        raise _Malformed("nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise _Malformed(f"not usable JSON: {error}") from error


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Malformed(f"the key {twice!r} stands twice in one object; keep one")
    return values


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {list: "a list", dict: "an object", str: "a text", bool: "true or false"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "a number")


# --- the other kinds


def _json_rows(source: str) -> Iterator[Row]:
    content = Path(source).read_bytes()
    if not content.strip():
        raise UserError(f"{source}: the file is empty")
    try:
        value = _parsed(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except _Malformed as malformed:
        hint = "; a file of one object per line is named .jsonl" if "Extra data" in str(malformed) else ""
        raise UserError(f"{source}: {malformed}{hint}") from malformed
    if not isinstance(value, list):
        raise UserError(f"{source}: a .json file holds a list of objects, this one {_kind(value)}")
    items = cast(list[object], value)
    problems = [
        f"{source}:row {number}: a row is an object, this one {_kind(item)}"
        for number, item in enumerate(items, start=1)
        if not isinstance(item, dict)
    ]
    if problems:
        raise UserError(listed(problems))
    for number, item in enumerate(items, start=1):
        yield Row(f"{source}:row {number}", cast(dict[str, object], item))


def _csv_rows(source: str) -> Iterator[Row]:
    problems: list[str] = []
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if not header:
                raise UserError(f"{source}: the file is empty; its first line names the columns")
            if twice := {name for name in header if header.count(name) > 1}:
                raise UserError(f"{source}:1: the column {sorted(twice)[0]!r} stands twice; keep one")
            end = reader.line_num
            for cells in reader:
                start, end = end + 1, reader.line_num  # a quoted cell may span lines
                if not cells:
                    continue
                if len(cells) != len(header):
                    problems.append(f"{source}:{start}: has {len(cells)} cells, the header {len(header)}")
                elif not problems:
                    yield Row(f"{source}:{start}", dict(zip(header, cells, strict=True)))
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{source}: not a CSV file ({error}); .jsonl holds any text") from error
    if problems:
        raise UserError(listed(problems))


def _parquet_rows(source: str) -> Iterator[Row]:
    # datasets brings pyarrow; read by itself it leaves no copy of the file in a cache.
    import pyarrow as arrow
    from pyarrow import parquet

    reader: Any = parquet  # untyped; the rows it hands out are plain Python values
    try:
        with reader.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{source}:row {number}", values)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{source}: not a whole Parquet file ({error}); copy or download it again") from error


READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".jsonl.gz": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _hub_rows(source: str, repo: str, config: str | None, split: str | None, limit: int | None) -> list[Row]:
    import datasets

    library: Any = datasets
    try:
        loaded: Any = library.load_dataset(repo, config, split=split)
    except Exception as error:  # the library raises a dozen kinds for network, name, configuration and split
        raise UserError(
            f"{source}: cannot be read from the hub: {first_line(error)}; it is no local file either "
            f"({_nearest_files(Path(source))}). Check the name, the split (now {split}), the network connection, and "
            "HF_TOKEN for a gated data set; a data set of several configurations is written owner/name:configuration"
        ) from error
    if split is None:
        if len(loaded) > 1:
            raise UserError(f"{source}: has the splits {', '.join(loaded)}; say which one with the key split")
        split, loaded = next(iter(loaded.items()))
    return [Row(f"{source}[{split}]:{number}", values) for number, values in enumerate(islice(loaded, limit), start=1)]
