"""Where answers go: JSON lines, CSV or Parquet, each able to go on where a run was cut off.

A run may be killed at any moment. What is not known to be whole is dropped when the next one goes
on, and its photos are read again.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import mmap
import os
import sys
from collections.abc import Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import IO, Literal, Protocol, get_args

from service.errors import OutputError
from service.sources import is_address
from service.tables import Entry, Row

Format = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
STANDARD_OUTPUT = "-"


class Output(Protocol):
    """Takes entries as they come; closing it makes the last of them safe."""

    def write(self, entry: Entry) -> None:
        """Add one entry."""

    def close(self) -> None:
        """Write what is still held back."""


def format_of(path: str, chosen: Format | None) -> Format:
    """The format chosen, else the one of the suffix. Raises OutputError where neither tells."""
    if chosen is not None:
        return chosen
    if path == STANDARD_OUTPUT:
        return "jsonl"
    try:
        return SUFFIXES[Path(path).suffix.lower()]
    except KeyError:
        raise OutputError(
            f"{path}: the suffix tells no format; end it in {', '.join(SUFFIXES)} or give --format."
        ) from None


def prepare(path: str, kind: Format, *, resume: bool, overwrite: bool) -> set[str]:
    """Make room at `path`; returns the sources that it holds already and keeps.

    Raises OutputError where there is something that is neither to be gone on with nor overwritten.
    """
    if path == STANDARD_OUTPUT:
        if resume or kind == "parquet":
            raise OutputError("standard output takes no --resume and no Parquet; give --output.")
        return set()
    if is_address(path):
        raise OutputError(f"{path}: addresses are written by lan-fer bulk alone.")
    if kind == "parquet":
        from service.parquet import prepare_folder

        return prepare_folder(path, resume=resume, overwrite=overwrite)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise OutputError(f"{path} is a folder.")
    if not target.exists() or not target.stat().st_size:
        return set()
    if resume:
        return _KEEP[kind](target)
    if not overwrite:
        raise OutputError(f"{path} exists; go on with it (--resume) or replace it (--overwrite).")
    target.write_bytes(b"")
    return set()


def open_output(path: str, kind: Format, columns: Mapping[str, type]) -> Output:
    """An output that appends to what `prepare` has left at `path`."""
    if kind == "parquet":
        from service.parquet import ParquetOutput

        return ParquetOutput(Path(path), columns)
    to_stdout = path == STANDARD_OUTPUT
    # Whoever gets the output closes it.
    file = sys.stdout if to_stdout else Path(path).open("a", encoding="utf-8", newline="")  # noqa: SIM115
    if kind == "jsonl":
        return JsonLinesOutput(file)
    return CsvOutput(file, columns, header=to_stdout or not Path(path).stat().st_size)


class JsonLinesOutput:
    """One JSON document a line."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, entry: Entry) -> None:
        """Add one entry; whoever reads along sees it at once."""
        lines = (json.dumps(document, ensure_ascii=False) for document in entry.documents)
        self._file.write("".join(line + "\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        """Close the file, unless it is standard output."""
        _close(self._file)


class CsvOutput:
    """RFC 4180 with a header, UTF-8, one row a line."""

    def __init__(self, file: IO[str], columns: Mapping[str, type], *, header: bool) -> None:
        self._file = file
        self._columns = columns
        if header:
            self._file.write(self._lines([{name: name for name in columns}]))

    def write(self, entry: Entry) -> None:
        """Add one entry; whoever reads along sees it at once."""
        self._file.write(self._lines(entry.rows))
        self._file.flush()

    def close(self) -> None:
        """Close the file, unless it is standard output."""
        _close(self._file)

    def _lines(self, rows: Iterable[Row]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self._columns, restval="", lineterminator="\n").writerows(rows)
        return buffer.getvalue()


def _close(file: IO[str]) -> None:
    if file is not sys.stdout:
        file.close()


def _keep_json_lines(path: Path) -> set[str]:
    """The sources in the file; a last line that was cut off is taken away."""
    _cut_after_last_line(path)
    done = set()
    with path.open("rb") as file:
        for line in file:
            try:
                done.add(str(json.loads(line)["source"]))
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(f"{path}: holds lines that are not lan-fer's.") from error
    return done


def _keep_csv(path: Path) -> set[str]:
    """The sources in the file but the last one, of whose rows some may be missing."""
    _cut_after_last_line(path)
    kept = path.with_name(path.name + ".unfinished")
    done: set[str] = set()
    with (
        path.open(encoding="utf-8", newline="") as file,
        kept.open("w", encoding="utf-8", newline="") as copy,
    ):
        reader, writer = csv.reader(file), csv.writer(copy, lineterminator="\n")
        header = next(reader, [])
        if "source" not in header:
            raise OutputError(f"{path}: has no column 'source'; it is not lan-fer's.")
        writer.writerow(header)
        held: list[list[str]] = []
        source = ""
        for source, group in itertools.groupby(reader, itemgetter(header.index("source"))):
            writer.writerows(held)
            held = list(group)
            done.add(source)
        done.discard(source)
    kept.replace(path)
    return done


def _cut_after_last_line(path: Path) -> None:
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        whole = content.rfind(b"\n") + 1
    os.truncate(path, whole)


_KEEP = {"jsonl": _keep_json_lines, "csv": _keep_csv}
