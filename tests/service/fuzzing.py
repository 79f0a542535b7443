"""A seeded mutator over real images, bodies and whole HTTP requests: the same cases every time."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import skimage.data
from PIL import Image

from tests.service.image_files import animation, encoded, exif

SIDE = 96
BOUNDARY = b"fuzzed"
# Where a number in a header says how much there is, these are what decoders stumble over.
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
JUNK = (b"\0", b"\xff", b"\r\n", b"--" + BOUNDARY, b'"', b"\xff\xd8\xff\xe1", b"IHDR", b"%n", b"..")


@dataclass(frozen=True)
class Case:
    """One request body and its Content-Type."""

    body: bytes
    content_type: str


@lru_cache(maxsize=1)
def corpus() -> tuple[bytes, ...]:
    """Small photos of a face in every format, and in variants of it."""
    face = Image.fromarray(skimage.data.astronaut()[20:276, 100:356]).resize((SIDE, SIDE))
    return (
        encoded(face, "JPEG"),
        encoded(face, "JPEG", progressive=True, exif=exif(6)),
        encoded(face.convert("L"), "JPEG"),
        encoded(face.convert("CMYK"), "JPEG"),
        encoded(face, "PNG"),
        encoded(face.convert("P"), "PNG"),
        encoded(face.convert("RGBA"), "PNG", exif=exif(3)),
        encoded(face.convert("I;16"), "PNG"),
        encoded(face, "WEBP"),
        encoded(face.convert("RGBA"), "WEBP", lossless=True, exif=exif(8)),
        encoded(face, "GIF"),
        encoded(face, "BMP"),
        encoded(face, "TIFF"),
        encoded(face, "TIFF", compression="tiff_lzw"),
        encoded(face, "TIFF", compression="jpeg"),
        encoded(face.convert("1"), "TIFF", compression="group4"),
        encoded(face, "TIFF", big_tiff=True),
        animation("GIF"),
        animation("WEBP"),
        animation("PNG"),
        animation("TIFF"),
    )


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one to eight small faults."""
    mutated = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        _mutate_once(mutated, rng)
    return bytes(mutated)


def _mutate_once(data: bytearray, rng: np.random.Generator) -> None:
    # Most of what decoders decide by stands near the beginning.
    limit = len(data) if rng.random() < 0.5 else min(len(data), 200)
    at = int(rng.integers(limit + 1))
    length = int(rng.integers(1, 65))
    kind = int(rng.integers(8))
    if kind == 0 and at < len(data):
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + length] = rng.bytes(length)
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = data[at : at + length] * int(rng.integers(1, 20))
    elif kind == 4:
        number = NUMBERS[int(rng.integers(len(NUMBERS)))]
        size = int(rng.choice((1, 2, 4)))
        order = ("big", "little")[int(rng.integers(2))]
        value = number & (1 << 8 * size) - 1
        data[at : at + size] = value.to_bytes(size, "big" if order == "big" else "little")
    elif kind == 5:
        data[at:at] = JUNK[int(rng.integers(len(JUNK)))]
    elif kind == 6:
        other = corpus()[int(rng.integers(len(corpus())))]
        data[at : at + length] = other[at : at + length]
    elif rng.random() < 0.3:
        del data[at:]


def multipart(photo: bytes) -> bytes:
    """A form with the photo and another field."""
    return (
        b'--%b\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n%b\r\n--%b--\r\n"
    ) % (BOUNDARY, BOUNDARY, photo, BOUNDARY)


def _case(rng: np.random.Generator) -> Case:
    photo = corpus()[int(rng.integers(len(corpus())))]
    kind = rng.random()
    if kind < 0.6:
        return Case(mutate(photo, rng), "image/jpeg")
    if kind < 0.85:
        body = multipart(mutate(photo, rng) if rng.random() < 0.5 else photo)
        return Case(mutate(body, rng), f"multipart/form-data; boundary={BOUNDARY.decode()}")
    body = json.dumps({"image": base64.b64encode(mutate(photo, rng)).decode()}).encode()
    return Case(mutate(body, rng) if rng.random() < 0.7 else body, "application/json")


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """`count` bodies, the first of them the same whatever the count."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield _case(rng)


def raw_requests(count: int, seed: int = 1) -> Iterator[bytes]:
    """Whole requests with faults, mostly in their heads."""
    rng = np.random.default_rng(seed)
    photo = corpus()[0]
    lines = (
        b"POST /predict?heatmap=overlay HTTP/1.1",
        b"Host: here",
        b"Content-Type: image/jpeg",
        b"Content-Length: %d" % len(photo),
        b"X-Request-ID: abc",
        b"X-Request-Timeout-Ms: 30000",
        b"Accept: application/json",
        b"Connection: close",
    )
    whole = b"\r\n".join(lines) + b"\r\n\r\n" + photo
    for _ in range(count):
        yield mutate(whole, rng)
