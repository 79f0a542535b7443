"""Calls as values: what both clients send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from lan_fer_client.models import PredictOptions

Photo = str | Path | bytes
"""A path, or the bytes of an image file."""

FIELD = "file"
JSON = "application/json"


@dataclass(frozen=True)
class Call:
    """One request, which can be sent several times."""

    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict)
    accept: str = JSON
    photos: tuple[tuple[str, bytes], ...] = ()

    @property
    def wants_picture(self) -> bool:
        """Whether an image file is asked for."""
        return self.accept != JSON

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request as httpx sends it."""
        files = [(FIELD, photo) for photo in self.photos] or None
        # The service does not compress.
        headers = {"Accept": self.accept, "Accept-Encoding": "identity"}
        return http.build_request(
            self.method, self.path, params=self.params, headers=headers, files=files
        )


def predict_call(
    path: str, photos: Sequence[Photo], options: PredictOptions, *, accept: str = JSON
) -> Call:
    """Photos to be read.

    Raises OSError where a file cannot be read, ValueError for a web address, which is not fetched,
    and TypeError for a photo alone, which would be taken letter by letter.
    """
    if isinstance(photos, str | Path | bytes | bytearray | memoryview):
        raise TypeError(
            f"photos are a list of photos, not one alone ({type(photos).__name__}); "
            "put it into a list, or call predict"
        )
    given = options.model_dump(exclude_defaults=True, by_alias=True)
    return Call(
        "POST",
        path,
        params={name: str(value) for name, value in given.items()},
        accept=accept,
        photos=tuple(_named(photo) for photo in photos),
    )


def _named(photo: Photo) -> tuple[str, bytes]:
    if isinstance(photo, bytes):
        return "photo", photo
    if isinstance(photo, str) and "://" in photo:
        raise ValueError(f"{photo}: a web address is not fetched; give a path, or the file's bytes")
    path = Path(photo)
    return path.name, path.read_bytes()
