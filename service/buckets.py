"""Photos and tables wherever they are: folders of this machine, or buckets by their address.

Addresses are those that Arrow reads: `s3://bucket/folder`, `gs://...`, `abfs://...`, `file:///...`;
what follows a question mark (`region`, `endpoint_override`, ...) goes to Arrow as it is. Keys come
from the environment, as the cloud's own tools find them. Needs the extra `parquet`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from service.errors import ImageFileError, OutputError, PayloadTooLargeError
from service.sources import ADDRESS, PHOTO_SUFFIXES, is_address

try:
    from pyarrow import fs
except ImportError as error:
    raise OutputError(
        "bulk needs pyarrow and Ray; in a checkout: pip install -e '.[bulk]'."
    ) from error


def locate(name: str) -> tuple[Any, str]:
    """The file system (pyarrow.fs) and the path on it of a path or an address.

    Raises ImageFileError where Arrow knows no such file system, or where keys stand in the address.
    """
    if not is_address(name):
        return fs.LocalFileSystem(), str(Path(name).absolute())
    parts = urlsplit(name)
    if "@" in parts.netloc:
        # They would end up in every row of the answers.
        raise ImageFileError("An address must hold no keys; give them in the environment.")
    try:
        system = _file_system(parts.scheme, parts.netloc, parts.query)
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{name}: cannot be reached ({error}).") from error
    return system, parts.netloc + parts.path.rstrip("/")


@lru_cache(maxsize=64)
def _file_system(scheme: str, place: str, query: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    """One client for each bucket, not for each photo."""
    return fs.FileSystem.from_uri(f"{scheme}{ADDRESS}{place}/?{query}".rstrip("?"))[0]


def list_photos(address: str) -> list[str]:
    """The addresses of the photos in a folder of a bucket and those below, or of one photo.

    Raises ImageFileError where there is none.
    """
    system, root = locate(address)
    try:
        infos = [system.get_file_info(root)]
        if infos[0].type == fs.FileType.Directory:
            infos = system.get_file_info(fs.FileSelector(root, recursive=True))
        paths = sorted(i.path for i in infos if i.type == fs.FileType.File and _is_photo(i.path))
    except OSError as error:
        raise ImageFileError(f"{address}: cannot be listed ({error}).") from error
    except UnicodeDecodeError as error:  # Arrow's own, of a folder given as file:///...
        raise ImageFileError(
            f"{address}: a name in it is no UTF-8, as an address must be; give the folder's path."
        ) from error
    if not paths:
        raise ImageFileError(f"{address}: no photos in this folder or below it.")
    scheme = address.partition(ADDRESS)[0]
    _, mark, query = address.partition("?")
    return [f"{scheme}{ADDRESS}{path}{mark}{query}" for path in paths]


def _is_photo(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in PHOTO_SUFFIXES


def read_photo_file(address: str, max_bytes: int) -> bytes:
    """The bytes of a photo in a bucket.

    Raises ImageFileError where it is not there, PayloadTooLargeError before it is read, and OSError
    where a bucket does not answer, which may pass.
    """
    system, path = locate(address)
    try:
        with system.open_input_file(path) as file:
            size: int = file.size()
            if size > max_bytes:
                raise PayloadTooLargeError(
                    f"The file has {size} bytes; at most {max_bytes} are taken."
                )
            content: bytes = file.read()
            return content
    except (FileNotFoundError, PermissionError) as error:
        raise ImageFileError(f"The file cannot be read ({type(error).__name__}).") from error
