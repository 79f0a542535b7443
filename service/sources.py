"""Which photos and videos a command line means: files, folders, patterns, names on stdin."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from service.errors import ImageFileError

# What imaging reads, and kinds that it does not: better said so than left out without a word.
PHOTO_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
    + (".avif", ".heic", ".heif", ".hif", ".jp2", ".jxl")
)
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".wmv")
)
STANDARD_INPUT = "-"
ADDRESS = "://"


def find_sources(names: Iterable[str], *, lines: Iterable[str] = ()) -> list[Path]:
    """The files that `names` mean, each once, in the order of the names.

    A folder means the photos below it (by suffix), a pattern what it matches, `-` the names in
    `lines`. A file that is named counts whatever its suffix. Raises ImageFileError where a name
    means nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        if name == STANDARD_INPUT:
            paths: Iterable[Path] = (Path(line.rstrip("\n")) for line in lines if line.strip())
        else:
            paths = _meant_by(name)
        found.update(dict.fromkeys(paths))
    return list(found)


def require_there(names: Iterable[str]) -> None:
    """Raises ImageFileError for the first name of a file or folder that is not there.

    For a job that takes long to start; patterns, addresses and `-` are for those who read them.
    """
    for name in names:
        elsewhere = name == STANDARD_INPUT or is_address(name) or glob.has_magic(name)
        # Path.exists raises where a name is too long or a folder may not be looked into.
        if not elsewhere and not os.path.exists(name):  # noqa: PTH110
            raise ImageFileError(f"{name}: no such file or folder.")


def is_address(name: str) -> bool:
    """Whether the name is a bucket's address, and no path of this machine."""
    return ADDRESS in name


def is_video(path: Path) -> bool:
    """Whether the suffix is a video's."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _meant_by(name: str) -> list[Path]:
    if is_address(name):
        raise ImageFileError(f"{name}: addresses are read by lan-fer bulk alone.")
    try:
        return _files_of(name)
    except OSError as error:
        raise ImageFileError(f"{name}: cannot be read ({error.strerror}).") from error


def _files_of(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        photos = _photos_below(path)
        if not photos:
            raise ImageFileError(f"{name}: no photos in this folder or below it.")
        return photos
    if path.exists() or not glob.has_magic(name):
        return [path]  # one that is missing is reported with the others that cannot be read
    # Path.glob takes no pattern that begins at the root.
    matches = map(Path, glob.iglob(name, recursive=True))  # noqa: PTH207
    files = sorted((match for match in matches if match.is_file()), key=_natural)
    if not files:
        raise ImageFileError(f"{name}: no file matches this pattern.")
    return files


def _photos_below(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file()),
        key=_natural,
    )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts photo2 before photo10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", str(path))
        if part
    ]


def drawn_path(source: Path, folder: Path, suffix: str) -> Path:
    """Where below `folder` the drawn copy of `source` belongs: under its own path, so that photos
    of one name in two folders do not meet.
    """
    parts = [part for part in source.parts if part not in (source.anchor, "..", ".")]
    target = folder.joinpath(*parts)
    return target if target.suffix.lower() == suffix else target.with_name(target.name + suffix)
