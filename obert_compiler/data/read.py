"""Reading data: a file, a hub data set or rows in memory become `Rows`.

JSON lines, CSV and text are read by the standard library, for three reasons: an error names the
line it lies in, nothing is cached on disk, and values stay what the file says (type inference turns
the sentence "null" into a missing value and dates into timestamps). Parquet files, hub names and
`Dataset` objects go through Hugging Face `datasets`.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import logging
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from obert_compiler.data.rows import Row, Rows
from obert_compiler.errors import DataError, UsageError

__all__ = ["FORMATS", "read_arrays", "read_rows"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")


_STREAM = "stream:"
_SHUFFLE_BUFFER = 10_000
"""Rows that a stream keeps to draw from, at least."""


def read_rows(
    source: object, split: str | None = None, *, limit: int | None = None, seed: int = 0
) -> Rows:
    """Rows of ``source``.

    ``stream:`` before the name of a hub data set, or a `datasets.IterableDataset`, reads ``limit``
    rows of data that may be larger than memory and disk. Everything else is read whole.

    Args:
        source: path of a file (.jsonl, .csv, .parquet, .txt, each also .gz), a hub data set as
            ``name``, ``name:split`` or ``name:config:split``, a `datasets.Dataset`, dictionaries.
        split: split of a hub data set, unless the name says it.
        limit: rows to take from a stream; what is not one gives all of its rows.
        seed: of the draw from a stream.

    Raises:
        UsageError: the file is missing, its format is unknown, or the split is.
        DataError: the file is empty, truncated, not UTF-8 or does not parse.
    """
    if isinstance(source, Rows):
        return source
    if isinstance(source, str | Path):
        return _read_location(str(source), split, limit, seed)
    if type(source).__name__ == "IterableDataset":
        return _from_stream(source, "stream in memory", limit, seed)
    if type(source).__module__.partition(".")[0] == "datasets":
        return _from_dataset(source, "data set in memory")
    if isinstance(source, Iterable):
        rows = list(source)
        if all(isinstance(row, Mapping) for row in rows):
            return Rows.of(rows)
    raise UsageError(
        f"data: expected a path, a hub name, a datasets.Dataset or a list of dictionaries, "
        f"found {type(source).__name__}"
    )


def _read_location(source: str, split: str | None, limit: int | None, seed: int) -> Rows:
    if source.startswith(_STREAM):
        return _from_hub_stream(source, split, limit, seed)
    path = Path(source)
    read = FORMATS.get(_suffix(path))
    if not path.exists():
        if read is None and _HUB_NAME.fullmatch(source):
            return _from_dataset(_load_hub(source, split), source)
        raise UsageError(f"data '{source}': expected a file, found none; check the path")
    if read is None or path.is_dir():
        found = "a folder" if path.is_dir() else f"'{path.name}'"
        raise UsageError(
            f"data '{source}': expected a file ending in {', '.join(FORMATS)} (each also .gz), "
            f"found {found}"
        )
    rows = read(path)
    if not len(rows):
        raise DataError(f"data '{source}': expected rows, found an empty file")
    return rows


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _read_bytes(path: Path) -> bytes:
    try:
        payload = path.read_bytes()
        if path.suffix.lower() == ".gz" and payload:
            payload = gzip.decompress(payload)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"data '{path}': expected a complete gzip file, found a truncated or damaged one "
            f"({error}); copy it again"
        ) from error
    except OSError as error:
        raise DataError(f"data '{path}': expected a readable file, found: {error}") from error
    return payload


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, counted from 1."""
    for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"data '{path}', line {number}: expected UTF-8, found byte "
                f"0x{line[error.start]:02x}; convert the file with iconv"
            ) from error
        yield number, text.rstrip("\r")


def _read_filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in _read_lines(path) if line.strip())


def _read_json_lines(path: Path) -> Rows:
    rows: list[Row] = []
    numbers: list[int] = []
    for number, line in _read_filled_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"data '{path}', line {number}: expected one JSON object a line, found text that "
                f"does not parse ({error.msg} at column {error.colno})"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"data '{path}', line {number}: expected one JSON object a line, "
                f"found {type(row).__name__}"
            )
        rows.append(row)
        numbers.append(number)
    return Rows(tuple(rows), str(path), tuple(numbers))


def _read_csv(path: Path) -> Rows:
    delimiter = "\t" if _suffix(path) == ".tsv" else ","
    text = "\n".join(line for _, line in _read_lines(path))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not header or not cells:
                header = header or cells
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"data '{path}', row {len(rows) + 1}: expected {len(header)} cells as in the "
                    f"header, found {len(cells)}"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"data '{path}', row {len(rows) + 1}: expected CSV, found a row that does not parse "
            f"({error})"
        ) from error
    return Rows.of(rows, str(path))


def _read_text(path: Path) -> Rows:
    lines = list(_read_filled_lines(path))
    rows: tuple[Row, ...] = tuple({"text": line.strip()} for _, line in lines)
    return Rows(rows, str(path), tuple(number for number, _ in lines))


def _read_parquet(path: Path) -> Rows:
    payload = _read_bytes(path)
    if not payload:
        return Rows.of((), str(path))
    datasets = _datasets(str(path))
    # Arrow tables are cached by `from_parquet`; a folder of our own keeps the user's home clean and
    # two processes apart.
    with tempfile.TemporaryDirectory() as cache, _quiet(datasets):
        plain = Path(cache) / "data.parquet"
        plain.write_bytes(payload)
        try:
            dataset = datasets.Dataset.from_parquet(
                str(plain), cache_dir=cache, keep_in_memory=True
            )
        except Exception as error:
            cause = error.__cause__ or error
            raise DataError(
                f"data '{path}': expected a parquet file, found one that does not parse ({cause})"
            ) from error
        return _from_dataset(dataset, str(path))


FORMATS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
"""Readers by file name ending."""


def _load_hub(name: str, split: str | None, **options: Any) -> Any:
    """One split of a hub data set."""
    datasets = _datasets(name)
    path, *parts = name.split(":")
    if parts:
        split = parts.pop()
    with _quiet(datasets):
        try:
            found = datasets.load_dataset(path, *parts, split=split, **options)
        except Exception as error:
            raise DataError(
                f"data '{name}': expected a file or a data set of the hub, found no such file and "
                f"the hub answers: {type(error).__name__}: {error}"
            ) from error
    if isinstance(found, datasets.DatasetDict | datasets.IterableDatasetDict):
        if len(found) != 1:
            raise UsageError(
                f"data '{name}': expected a split, as in {path}:{next(iter(found))}, found none; "
                f"the data set has {', '.join(found)}"
            )
        (found,) = found.values()
    return found


def _from_hub_stream(source: str, split: str | None, limit: int | None, seed: int) -> Rows:
    name = source.removeprefix(_STREAM)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(
            f"data '{source}': expected the name of a hub data set to stream, as in "
            f"stream:wikitext:wikitext-103-raw-v1:train, found '{name}'"
        )
    return _from_stream(_load_hub(name, split, streaming=True), source, limit, seed)


def _from_stream(dataset: Any, origin: str, limit: int | None, seed: int) -> Rows:
    """``limit`` rows of an `IterableDataset`, drawn from twice as many."""
    if limit is None:
        raise UsageError(
            f"data '{origin}': expected the number of rows to take from a stream, found none; give "
            "--samples N"
        )
    shuffled = dataset.shuffle(seed=seed, buffer_size=max(_SHUFFLE_BUFFER, limit))
    return Rows.of((dict(row) for row in shuffled.take(limit)), origin)


def _from_dataset(dataset: Any, origin: str) -> Rows:
    if not hasattr(dataset, "column_names") or isinstance(dataset, dict):
        raise UsageError(
            f"data '{origin}': expected one split of a data set, found {type(dataset).__name__}"
        )
    return Rows.of((dict(row) for row in dataset), origin)


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"data '{source}': expected the package datasets, found none; "
            "pip install obert-compiler[compile], or give a .jsonl or .csv file"
        ) from None
    return datasets


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silence the progress bars of `datasets` and the retries that the hub client tells."""
    shown = datasets.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def read_arrays(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an .npz file by name; pickled objects are refused.

    Raises:
        UsageError: the file is missing.
        DataError: it is no .npz file, or holds objects.
    """
    if not Path(path).is_file():
        raise UsageError(f"data '{path}': expected a file, found none; check the path")
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"data '{path}': expected an .npz file, found a single array")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"data '{path}': expected an .npz file of plain arrays, found one that does not load "
            f"({error}); write it with numpy.savez"
        ) from error
