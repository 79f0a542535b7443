"""Writing what a user has asked for; where the system refuses, one line says so, with the path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import OutputError

STANDARD_OUTPUT = "-"


@contextmanager
def written(path: str | Path) -> Iterator[None]:
    """What is done in the block is to write at `path`. Raises OutputError where it cannot be.

    Not for a reader of standard output that has gone: BrokenPipeError stays what it is.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if str(path) == STANDARD_OUTPUT else path
        raise OutputError(f"{name}: cannot be written ({error.strerror or error}).") from error


def require_apart(targets: Iterable[Path], sources: Iterable[Path]) -> None:
    """Raises OutputError where a target is one of the sources, under whatever name."""
    there = {_place(target) for target in targets} - {None}
    for source in sources if there else ():
        if _place(source) in there:
            raise OutputError(
                f"{source}: is to be read, and would be written over; choose another place."
            )


def _place(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # not there, or a name that no file can have
        return None
    return found.st_dev, found.st_ino


def make_folder(folder: Path) -> None:
    """Make it, and those above it. Raises OutputError where they cannot be had."""
    with written(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            for path in (folder, *folder.parents):
                if path.exists() and not path.is_dir():
                    raise OutputError(f"{path} is a file where a folder is needed.") from error
            raise
