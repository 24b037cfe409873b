"""Reading files: every format gives the same rows, every fault one line that names its place."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obert_compiler.data import read
from obert_compiler.data.read import read_arrays, read_rows
from obert_compiler.data.rows import Rows
from obert_compiler.errors import DataError, UsageError

ROWS: list[dict[str, Any]] = [
    {"text": 'plain, with a comma and "quotes"', "label": 1},
    {"text": "null", "label": 0},
    {"text": "zweite Zeile, grün\u2028 2024-01-01", "label": 1},
]


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write(path: Path, payload: bytes) -> Path:
    path.write_bytes(gzip.compress(payload, mtime=0) if path.suffix == ".gz" else payload)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "ROWS.JSONL"])
def test_json_lines_keep_values_and_line_numbers(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, b"\xef\xbb\xbf" + _json_lines(ROWS[:1]) + b"\r\n\n")
    path = _write(tmp_path / name, _json_lines(ROWS[:1]) + b"\n" + _json_lines(ROWS[1:]))
    rows = read_rows(path)
    assert list(rows) == ROWS
    assert rows.numbers == (1, 3, 4)
    assert rows.where(1) == f"data '{path}', row 3"


def test_byte_order_mark_and_carriage_returns_are_no_text(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    assert [row["text"] for row in read_rows(path)] == ["a", "b"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_csv_keeps_text_as_it_is(tmp_path: Path, name: str) -> None:
    separator = "\t" if name == "a.tsv" else ","
    lines = ["text,label", '"a, b ""c""",1', '"null",0', '"two\nlines",1']
    payload = "\n".join(lines).replace(",", separator).encode()
    rows = read_rows(_write(tmp_path / name, payload))
    assert rows.columns == ("text", "label")
    assert [row["text"] for row in rows] == [f'a{separator} b "c"', "null", "two\nlines"]
    assert [row["label"] for row in rows] == ["1", "0", "1"]


def test_csv_keeps_empty_lines_within_a_cell(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", b'text\r\n"one\r\n\r\ntwo"\r\n\r\nthree\r\n')
    assert [row["text"] for row in read_rows(path)] == ["one\n\ntwo", "three"]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.parquet.gz"])
def test_parquet_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    plain = tmp_path / "plain.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(plain))
    assert list(read_rows(_write(tmp_path / name, plain.read_bytes()))) == ROWS


def test_parquet_leaves_no_cache_behind(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    plain = tmp_path / "plain.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(plain))
    home = tmp_path / "home"
    home.mkdir()
    code = f"from obert_compiler.data.read import read_rows; print(len(read_rows({str(plain)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(home), "HF_HOME": str(home / "hf"), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "3\n", done.stderr
    assert done.stderr == ""
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_dataset_in_memory(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    assert list(read_rows(dataset)) == ROWS
    with pytest.raises(UsageError, match="expected one split"):
        read_rows(datasets.DatasetDict({"train": dataset}))


def test_text_file_is_one_row_a_line(tmp_path: Path) -> None:
    rows = read_rows(_write(tmp_path / "a.txt.gz", b" one \n\ntwo\n"))
    assert list(rows) == [{"text": "one"}, {"text": "two"}]
    assert rows.numbers == (1, 3)


def test_samples_all_read(samples: Path) -> None:
    counts = {p.name: len(read_rows(p)) for p in samples.iterdir() if p.name != "README.md"}
    assert counts["snips_intents.csv"] == 48
    assert min(counts.values()) >= 10


EMPTY = [("a.parquet", b""), ("a.jsonl.gz", b""), ("a.jsonl.gz", gzip.compress(b"\n\n", mtime=0))]
EMPTY += [(f"a.{ending}", p) for ending in ("jsonl", "csv", "txt") for p in (b"", b"\n\n")]


@pytest.mark.parametrize(("name", "payload"), EMPTY)
def test_empty_file(tmp_path: Path, name: str, payload: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(payload)
    with pytest.raises(DataError, match=r"a\.\w+.*: expected rows, found an empty file"):
        read_rows(path)


def test_csv_with_a_header_only_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found an empty file"):
        read_rows(_write(tmp_path / "a.csv", b"text,label\n"))


def test_truncated_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(_json_lines(ROWS * 50), mtime=0)[:-20])
    with pytest.raises(DataError, match="expected a complete gzip file, found a truncated"):
        read_rows(path)


def test_not_gzip_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(_json_lines(ROWS))
    with pytest.raises(DataError, match="expected a complete gzip file"):
        read_rows(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_not_utf8_names_the_line_and_byte(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"a\.\w+', line 2: expected UTF-8, found byte 0xe9"):
        read_rows(path)


@pytest.mark.parametrize(
    ("line", "found"),
    [(b"{not json}", "does not parse"), (b"[1, 2]", "found list"), (b'"text"', "found str")],
)
def test_broken_json_names_the_line(tmp_path: Path, line: bytes, found: str) -> None:
    path = _write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError, match=f"line 2: expected one JSON object a line, .*{found}"):
        read_rows(path)


def test_ragged_csv_names_the_row(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", b"text,label\na,1\nb\n")
    with pytest.raises(DataError, match="row 2: expected 2 cells as in the header, found 1"):
        read_rows(path)


def test_unclosed_quote_in_csv_names_the_row(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", b'text,label\na,1\n"b,1\n')
    with pytest.raises(DataError, match="row 2: expected CSV"):
        read_rows(path)


def test_broken_parquet(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", b"PAR1 and then nothing of the kind PAR1")
    with pytest.raises(DataError, match="expected a parquet file") as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a file, found none"):
        read_rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(UsageError, match="expected a file, found none"):
        read_rows("./no/such/place/really")


def test_unknown_ending_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a file ending in \.jsonl.*found 'a.xlsx'"):
        read_rows(_write(tmp_path / "a.xlsx", b"x"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="found a folder"):
        read_rows(tmp_path / "folder.csv")


def test_unreachable_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*args: object, **options: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="hub answers: ConnectionError: no network at all"):
        read_rows("someone/something:train")


def test_hub_name_says_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls: list[tuple[Any, ...]] = []

    def load(*args: object, split: str | None = None) -> object:
        calls.append((*args, split))
        dataset = datasets.Dataset.from_list(ROWS)
        return dataset if split else datasets.DatasetDict({"train": dataset, "test": dataset})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_rows("nyu-mll/glue:sst2:validation")) == 3
    assert len(read_rows("imdb", split="test")) == 3
    assert calls == [("nyu-mll/glue", "sst2", "validation"), ("imdb", "test")]
    with pytest.raises(UsageError, match=r"expected a split, as in imdb:train, found none; .*test"):
        read_rows("imdb")


def test_something_else_is_misuse() -> None:
    with pytest.raises(UsageError, match="found int"):
        read_rows(3)
    with pytest.raises(UsageError, match="found list"):
        read_rows(["text"])


def test_sample_of_rows_is_seeded_and_keeps_numbers() -> None:
    rows = Rows.of([{"text": str(i)} for i in range(100)], "file")
    drawn = rows.sample(10, seed=3)
    assert len(drawn) == 10
    assert list(drawn) == [{"text": str(n - 1)} for n in drawn.numbers]
    assert list(drawn.numbers) == sorted(drawn.numbers)
    assert drawn == rows.sample(10, seed=3)
    assert drawn != rows.sample(10, seed=4)
    assert rows.sample(1000, seed=0) is rows


def test_arrays_of_an_npz_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(6.0).reshape(2, 3))
    assert read_arrays(path)["x"].shape == (2, 3)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"expected an .npz file"):
        read_arrays(path)
    np.savez(path, x=np.array([{"code": 1}], dtype=object))
    with pytest.raises(DataError, match=r"expected an .npz file of plain arrays"):
        read_arrays(path)
    np.save(tmp_path / "b.npy", np.zeros(2))
    with pytest.raises(DataError, match="found a single array"):
        read_arrays(tmp_path / "b.npy")
    with pytest.raises(UsageError, match="found none"):
        read_arrays(tmp_path / "c.npz")


def test_a_stream_gives_the_rows_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    pulled = []

    def endless() -> Iterator[dict[str, str]]:
        for number in itertools.count():
            pulled.append(number)
            yield {"text": f"row {number}"}

    def load(path: str, *parts: str, split: str | None, streaming: bool = False) -> object:
        assert (path, parts, split, streaming) == ("owner/text", ("en",), "train", True)
        return datasets.IterableDataset.from_generator(endless)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(read, "_SHUFFLE_BUFFER", 50)
    rows = read.read_rows("stream:owner/text:en:train", limit=30, seed=1)
    assert len(rows) == 30
    assert len({row["text"] for row in rows}) == 30
    assert max(pulled) < 200
    again = read.read_rows("stream:owner/text:en:train", limit=30, seed=1)
    assert [row["text"] for row in again] == [row["text"] for row in rows]
    assert [row["text"] for row in rows] != [f"row {i}" for i in range(30)]


def test_a_stream_without_a_number_of_rows_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(UsageError, match="the number of rows to take from a stream"):
        read.read_rows(stream)
    assert len(read.read_rows(stream, limit=2)) == 2


def test_a_stream_of_a_file_is_refused() -> None:
    with pytest.raises(UsageError, match="expected the name of a hub data set to stream"):
        read.read_rows("stream:/data/text.txt", limit=3)
