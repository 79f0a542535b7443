"""Which photos and videos a command line means: files, folders, patterns, names on stdin."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
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
DRAWN_PHOTO, DRAWN_VIDEO = ".jpg", ".mp4"
STANDARD_INPUT = "-"
ADDRESS = "://"


def find_sources(
    names: Iterable[str], *, lines: Iterable[str] = (), drawn: Path | None = None
) -> list[Path]:
    """The files that `names` mean, each once, in the order of the names.

    A folder means the photos below it (by suffix) but their copies in the folder `drawn`, a pattern
    what it matches, `-` the names in `lines`. A file that is named counts whatever its suffix.
    Raises ImageFileError where a name means nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        if name == STANDARD_INPUT:
            paths: Iterable[Path] = (Path(line.rstrip("\n")) for line in lines if line.strip())
        else:
            paths = _meant_by(name, drawn)
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


def _meant_by(name: str, drawn: Path | None) -> list[Path]:
    if not name:
        # As a path it would be the current folder.
        raise ImageFileError("A name is empty; give a file, a folder, a pattern, or - for stdin.")
    if is_address(name):
        raise ImageFileError(f"{name}: addresses are read by lan-fer bulk alone.")
    path = Path(name)
    # Those of Path raise where a name is too long or a folder may not be looked into.
    if os.path.isdir(name):  # noqa: PTH112
        photos = _photos_below(path, drawn)
        if not photos:
            raise ImageFileError(f"{name}: no photos in this folder or below it.")
        return photos
    if os.path.exists(name) or not glob.has_magic(name):  # noqa: PTH110
        return [path]  # one that is missing is reported with the others that cannot be read
    matches = dict.fromkeys(match for match in _matches(path) if _is_file(match))
    files = sorted(matches, key=_natural)
    if not files:
        raise ImageFileError(f"{name}: no file matches this pattern.")
    return files


def _matches(pattern: Path) -> Iterator[Path]:
    """As glob has them, but `**` goes through no links: they may lead in circles."""
    parts = pattern.parts
    if "**" not in parts:
        # Path.glob takes no pattern that begins at the root.
        yield from map(Path, glob.iglob(str(pattern)))  # noqa: PTH207
        return
    deep = parts.index("**")
    tops = glob.iglob(str(Path(*parts[:deep])))  # noqa: PTH207
    for top in tops:
        for folder, below, _ in os.walk(top):
            below[:] = [name for name in below if not name.startswith(".")]
            yield from _matches(Path(glob.escape(folder), *(parts[deep + 1 :] or "*")))


def _photos_below(folder: Path, drawn: Path | None) -> list[Path]:
    found: list[Path] = []

    def closed(error: OSError) -> None:
        found.append(Path(error.filename))  # reported with the files that cannot be read

    for top, _, names in os.walk(folder, onerror=closed):
        paths = (Path(top, name) for name in names)
        found += [p for p in paths if p.suffix.lower() in PHOTO_SUFFIXES and _is_file(p)]
    if drawn is not None:
        copies = {_absolute(drawn_path(photo, drawn, DRAWN_PHOTO)) for photo in found}
        found = [photo for photo in found if _absolute(photo) not in copies]
    return sorted(found, key=_natural)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path has none without links and `..`


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # it may not be looked at, which whoever reads it will be told
        return True


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
