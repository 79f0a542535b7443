"""Answers in Parquet: a folder of files, each written whole under another name, then renamed.

Readers (pandas, pyarrow, Spark, DuckDB) take the folder as one table. Needs the extra `parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.errors import OutputError
from service.printable import as_text
from service.sources import is_address
from service.tables import Entry, Row
from service.writing import make_folder, written

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pyarrow import fs
except ImportError as error:
    raise OutputError(
        "Parquet needs pyarrow; in a checkout: pip install -e '.[parquet]'."
    ) from error

from service.buckets import locate

SUFFIX = ".parquet"
PART_ROWS = 10_000  # rows of one file; a killed run loses at most the part it was at
UNFINISHED = ".unfinished"


def schema_of(columns: Mapping[str, type]) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The Arrow schema of the columns."""
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    return pa.schema([(name, arrow[kind]) for name, kind in columns.items()])


class ParquetOutput:
    """Adds files of about PART_ROWS rows to a folder."""

    def __init__(self, folder: Path, columns: Mapping[str, type]) -> None:
        make_folder(folder)
        self._folder = folder
        self._schema = schema_of(columns)
        self._rows: list[Row] = []
        self._next = 1 + max((_number(part) for part in folder.glob("part-*" + SUFFIX)), default=-1)

    def write(self, entry: Entry) -> None:
        """Hold the entry back until a file is worth it; an entry is never split."""
        self._rows.extend(entry.rows)
        if len(self._rows) >= PART_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is held back."""
        self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        part = self._folder / f"part-{self._next:06}{SUFFIX}"
        unfinished = part.with_suffix(UNFINISHED)
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        with written(part):
            pq.write_table(table, unfinished)
            unfinished.replace(part)
        self._next += 1
        self._rows = []


def prepare_folder(folder: str, *, resume: bool, overwrite: bool) -> set[str]:
    """Make room in a folder, by its path or address; the sources that it holds and keeps.

    What a killed run left unfinished is taken away. Raises OutputError where there are answers that
    are neither to be gone on with nor overwritten, or tables of another kind, and where a folder of
    this machine cannot be had.
    """
    if as_text(folder) != folder:
        raise OutputError(f"{folder}: the path of a Parquet folder must be UTF-8.")
    system, parts = _parts(folder)
    if not is_address(folder):
        make_folder(Path(folder))
    if not parts:
        return set()
    if overwrite:
        for part in parts:
            system.delete_file(part)
        return set()
    if not resume:
        raise OutputError(f"{folder} exists; go on with it (--resume) or replace it (--overwrite).")
    done: set[str] = set()
    for part in parts:
        done.update(_sources(system, part))
    return done


def _parts(folder: str) -> tuple[Any, list[str]]:
    """The file system, and the files on it that this module writes."""
    system, root = locate(folder)
    if system.get_file_info(root).type == fs.FileType.File:
        raise OutputError(f"{folder} is no folder; Parquet goes into one.")
    found = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    ours = (info.path for info in found if info.path.endswith((SUFFIX, UNFINISHED)))
    return system, sorted(ours)


def _sources(system: Any, part: str) -> list[str]:  # noqa: ANN401 - pyarrow has no types
    if part.endswith(UNFINISHED):
        system.delete_file(part)
        return []
    try:
        with system.open_input_file(part) as file:
            table = pq.read_table(file, columns=["source"])
    except pa.ArrowInvalid:
        system.delete_file(part)  # its writer was killed half way; its photos are read again
        return []
    if "source" not in table.column_names:
        raise OutputError(f"{part}: has no column 'source'; it is not lan-fer's.")
    sources: list[str] = table.column("source").unique().to_pylist()
    return sources


def rows_with(folder: str, column: str) -> list[Row]:
    """`source` and `column` of the rows where that column is not empty, of all files."""
    system, parts = _parts(folder)
    found: list[Row] = []
    for part in parts:
        with system.open_input_file(part) as file:
            table = pq.read_table(file, columns=["source", column])
        found.extend(table.filter(pc.is_valid(table.column(column))).to_pylist())
    return found


def _number(part: Path) -> int:
    digits = part.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else -1
