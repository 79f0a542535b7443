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
from service.printable import printable_json
from service.sources import is_address
from service.tables import Entry, Row
from service.writing import STANDARD_OUTPUT, make_folder, written

Format = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}


class Output(Protocol):
    """Takes entries as they come; closing it makes the last of them safe.

    Both raise OutputError where the file cannot be written.
    """

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

    Raises OutputError where there is something that is neither to be gone on with nor overwritten,
    and where nothing can be written.
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
    make_folder(Path(path).parent)
    with written(path):
        return _prepare_file(Path(path), kind, resume=resume, overwrite=overwrite)


def _prepare_file(path: Path, kind: Format, *, resume: bool, overwrite: bool) -> set[str]:
    if path.is_dir():
        raise OutputError(f"{path} is a folder.")
    if not path.exists() or not path.stat().st_size:
        return set()
    if resume:
        try:
            return _KEEP[kind](path)
        except (UnicodeDecodeError, csv.Error) as error:
            raise OutputError(f"{path}: holds lines that are not lan-fer's.") from error
    if not overwrite:
        raise OutputError(f"{path} exists; go on with it (--resume) or replace it (--overwrite).")
    path.write_bytes(b"")
    return set()


def open_output(path: str, kind: Format, columns: Mapping[str, type]) -> Output:
    """An output that appends to what `prepare` has left at `path`.

    Raises OutputError where it cannot be written.
    """
    if kind == "parquet":
        from service.parquet import ParquetOutput

        return ParquetOutput(Path(path), columns)
    to_stdout = path == STANDARD_OUTPUT
    with written(path):
        # Whoever gets the output closes it.
        file = sys.stdout if to_stdout else Path(path).open("a", encoding="utf-8", newline="")  # noqa: SIM115
        if kind == "jsonl":
            return JsonLinesOutput(file, path)
        output = CsvOutput(file, path, columns)
        if to_stdout or not Path(path).stat().st_size:
            output.write_header()
        return output


class _TextOutput:
    """Lines that whoever reads along sees at once."""

    def __init__(self, file: IO[str], path: str) -> None:
        self._file = file
        self._path = path

    def close(self) -> None:
        """Close the file, unless it is standard output."""
        # What a full disk did not take is tried once more, and raises once more.
        if self._file is not sys.stdout:
            with written(self._path):
                self._file.close()

    def _add(self, lines: str) -> None:
        with written(self._path):
            self._file.write(lines)
            self._file.flush()


class JsonLinesOutput(_TextOutput):
    """One JSON document a line."""

    def write(self, entry: Entry) -> None:
        """Add one entry."""
        lines = (json.dumps(document, ensure_ascii=False) for document in entry.documents)
        self._add("".join(printable_json(line) + "\n" for line in lines))


class CsvOutput(_TextOutput):
    """RFC 4180 with a header, UTF-8, one row a line."""

    def __init__(self, file: IO[str], path: str, columns: Mapping[str, type]) -> None:
        super().__init__(file, path)
        self._columns = columns

    def write_header(self) -> None:
        """At once, before there is an answer: a full disk is told of before photos are read."""
        try:
            self._add(self._lines([{name: name for name in self._columns}]))
        except OutputError:
            self.close()
            raise

    def write(self, entry: Entry) -> None:
        """Add one entry."""
        self._add(self._lines(entry.rows))

    def _lines(self, rows: Iterable[Row]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self._columns, restval="", lineterminator="\n").writerows(rows)
        return buffer.getvalue()


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
