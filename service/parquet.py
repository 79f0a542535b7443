"""Answers in Parquet: a folder of files, each written whole under another name, then renamed.

Readers (pandas, pyarrow, Spark, DuckDB) take the folder as one table. Needs the extra `parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.errors import OutputError
from service.outputs import PART_ROWS, Entry
from service.tables import Row

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise OutputError("Parquet needs pyarrow: pip install 'lan-fer[parquet]'.") from error

SUFFIX = ".parquet"


def schema_of(columns: Mapping[str, type]) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The Arrow schema of the columns."""
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    return pa.schema([(name, arrow[kind]) for name, kind in columns.items()])


class ParquetOutput:
    """Adds files of about PART_ROWS rows to a folder."""

    def __init__(self, folder: Path, columns: Mapping[str, type]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
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
        unfinished = part.with_suffix(".unfinished")
        pq.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), unfinished)
        unfinished.replace(part)
        self._next += 1
        self._rows = []


def sources_in(folder: Path) -> set[str]:
    """The sources in a folder's files; what a killed run left unfinished is taken away.

    Raises OutputError where the folder holds tables without sources.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder; Parquet goes into one.")
    done: set[str] = set()
    for part in sorted(folder.rglob("*")):
        if part.suffix == ".unfinished":
            part.unlink()
        elif part.suffix == SUFFIX:
            done.update(_sources(part))
    return done


def remove_parts(folder: Path) -> None:
    """Empty a folder of the files that this module writes, and of nothing else."""
    for part in [*folder.glob("*" + SUFFIX), *folder.glob("*.unfinished")]:
        part.unlink()


def _sources(part: Path) -> list[str]:
    try:
        table = pq.read_table(part, columns=["source"])
    except pa.ArrowInvalid:
        part.unlink()  # a writer was killed half way; its photos are read again
        return []
    if "source" not in table.column_names:
        raise OutputError(f"{part}: has no column 'source'; it is not lan-fer's.")
    sources: list[str] = table.column("source").unique().to_pylist()
    return sources


def _number(part: Path) -> int:
    digits = part.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else -1
