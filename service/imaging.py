"""Bytes to an RGB image and back: limits, formats, orientation, and one boundary for errors.

Limits are held before work: bytes first, then the pixels a header announces, then decoding. Every
exception of Pillow, OpenCV and their C libraries becomes one of ours in ``decode_image``, raised
from its cause.

Embedded ICC profiles are not applied. The networks hardly depend on the gamut (a Display P3 photo
read as sRGB is a little pale), while a transform costs more than decoding the JPEG does and hands
an untrusted profile to another C parser.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from service.errors import (
    EmptyBodyError,
    ImageTooLargeError,
    InvalidImageError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
from service.image_directories import check_directory
from service.image_headers import (
    MAX_COUNTED_FRAMES,
    MAX_PNG_TEXT_BYTES,
    foreign_format,
    read_header,
    sniff_format,
)

# Pillow's own guard is one number for the process, and warns on standard error well below it. The
# caller's limit replaces it: it is checked before Pillow may allocate.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of faults in a file on standard error, past the log; its sender is told anyway.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Of compressed text in a PNG, all of it together; Pillow's own limit is 64 MB.
PngImagePlugin.MAX_TEXT_MEMORY = MAX_PNG_TEXT_BYTES

_STRIP_PIXELS = 1 << 20
_LEAST_BITS = {"1": 1, "L": 2, "P": 2}  # of a pixel or of one of its colours, by Pillow's mode
_USUAL_TILE_PIXELS = 1 << 20  # four times those of the largest tiles that are common
_JPEG_QUALITY = 90
_WEBP_FLAGS = {
    "RGB": cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    "RGBA": cv2.IMREAD_UNCHANGED,
}
# Of a photo. Decoders keep some bytes for each row or whole rows several times: where a picture is
# a line, that is more than its pixels take.
_MAX_SIDE = 65_535
_JPEG_MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_EXIF_TEXT = 256 * 1024  # hexadecimal digits: two segments of a JPEG
_MOVES = 0x02  # a flag of an extended WebP

# What Pillow, OpenCV and our header readers raise on broken bytes. Pillow promises no shorter list:
# its plugins let through whatever their parsing of nonsense runs into.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    cv2.error,
)


@dataclass(frozen=True)
class ImageLimits:
    """The most a client may send: ``max_bytes`` encoded, ``max_pixels`` = width x height."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One image as a viewer shows it.

    ``pixels`` is [H, W, 3] uint8 RGB, C-contiguous, upright (EXIF orientation applied), with
    transparency laid over white. ``format`` is "JPEG", "PNG", "WEBP", "GIF", "BMP" or "TIFF".
    ``frames`` counts the frames or pages of the file (at most 10,000 of a GIF or TIFF); ``pixels``
    is the first. ``reduction`` is 2, 4 or 8 where the pixels are a half, a quarter or an eighth of
    the file's in each direction; ``full_size`` is then (height, width) of the upright photo.
    """

    pixels: NDArray[np.uint8]
    format: str
    frames: int
    reduction: int = 1
    full_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright photo, whatever the reduction."""
        return self.full_size or (self.pixels.shape[0], self.pixels.shape[1])


def decode_image(
    data: bytes,
    limits: ImageLimits,
    *,
    admit: Callable[[int], None] | None = None,
    enough: int | None = None,
) -> DecodedImage:
    """Decode the first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF. Thread-safe.

    A JPEG is decoded at a half, a quarter or an eighth of its size where its longer side still has
    ``enough`` pixels then, which takes less time and memory.

    ``admit`` is told how many pixels the image has, just before memory is taken for them (twice as
    many of the few kinds that take twice the memory); what it raises is raised here.

    Raises EmptyBodyError, PayloadTooLargeError (bytes), UnsupportedMediaTypeError (no such format),
    ImageTooLargeError (pixels, or memory ran out) and InvalidImageError (truncated, broken, or a
    variant of the format that cannot be read).
    """
    if not data:
        raise EmptyBodyError("The body is empty; send the bytes of an image.")
    if len(data) > limits.max_bytes:
        raise PayloadTooLargeError(
            f"The image has {len(data)} bytes; at most {limits.max_bytes} are accepted."
        )
    image_format = sniff_format(data)
    if image_format is None:
        raise UnsupportedMediaTypeError(_not_read(data))
    try:
        return _decode(data, image_format, limits.max_pixels, admit, enough)
    except MemoryError as error:
        raise ImageTooLargeError("There is not enough memory to decode the image.") from error
    except _DECODER_ERRORS as error:
        raise InvalidImageError(_what_is_wrong(image_format, error)) from error


def _not_read(data: bytes) -> str:
    kinds = "JPEG, PNG, WebP, GIF, BMP or TIFF"
    kind = foreign_format(data)
    if kind is None:
        return f"The bytes are no {kinds} image."
    return f"A file of kind {kind} is not read here; send a {kinds} image."


def from_pillow(image: Image.Image, limits: ImageLimits) -> DecodedImage:
    """The current frame of an open Pillow image, turned upright by its EXIF orientation.

    ``format`` is the file's where Pillow knows it, else "RAW". Raises ImageTooLargeError (pixels,
    or memory ran out) and InvalidImageError (the file behind the image is broken).
    """
    _check_pixels(image.width, image.height, limits.max_pixels)
    name = image.format or "RAW"
    try:
        pixels = _decode_in_strips(image)
        upright = _turn_upright(pixels, _orientation(image))
    except MemoryError as error:
        raise ImageTooLargeError("There is not enough memory to decode the image.") from error
    except _DECODER_ERRORS as error:
        raise InvalidImageError(_what_is_wrong(name, error)) from error
    return DecodedImage(upright, name, frames=1)


def encode_image(pixels: NDArray[np.uint8], media_type: str) -> bytes:
    """Encode [H, W, 3] uint8 RGB as "image/png" (fast compression) or "image/jpeg" (quality 90).

    Raises ImageTooLargeError where a side is longer than JPEG can hold, ValueError for another
    media type.
    """
    parameters: list[int] = []
    if media_type == "image/png":
        # OpenCV's default (level 1, run lengths, one filter) is its fastest: naming even the same
        # level makes it try every filter, for twice the time and no smaller file.
        suffix = ".png"
    elif media_type == "image/jpeg":
        suffix = ".jpg"
        parameters = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        if max(pixels.shape) > _JPEG_MAX_SIDE:
            raise ImageTooLargeError(
                f"A JPEG holds at most {_JPEG_MAX_SIDE} pixels a side; ask for image/png."
            )
    else:
        raise ValueError(f"expected image/png or image/jpeg, got {media_type}")
    _, encoded = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    return encoded.tobytes()


def _what_is_wrong(image_format: str, error: Exception) -> str:
    if "truncated" in str(error).lower():
        return f"The {image_format} file is truncated: its data end before the image does."
    return f"The {image_format} file is broken, incomplete, or of a kind that cannot be read."


def _decode(
    data: bytes,
    image_format: str,
    max_pixels: int,
    admit: Callable[[int], None] | None,
    enough: int | None,
) -> DecodedImage:
    header = read_header(data, image_format)
    if header.width is not None and header.height is not None:
        _check_pixels(header.width, header.height, max_pixels)
    if image_format == "JPEG" and (size := _jpeg_size(data)) is not None:
        _check_pixels(*size, max_pixels)
        orientation = _jpeg_orientation(data) if header.may_be_turned else 1
        if admit is not None:
            admit(size[0] * size[1])
        reduction = _reduction(max(size), enough)
        if (pixels := _decode_jpeg(data, size, reduction)) is not None:
            return _upright(pixels, image_format, orientation, size, reduction=reduction)
        admit = None  # it was asked
    with Image.open(BytesIO(data), formats=[image_format]) as image:
        _check_pixels(image.width, image.height, max_pixels)
        _check_parts(image)
        tile_pixels = _check_tile(image, max_pixels)
        if image_format == "JPEG":
            # In one piece: what its decoder does not take at once is copied for each piece more.
            image.decodermaxblock = max(len(data), image.decodermaxblock)
        frames = header.frames or _frame_count(image, image_format)
        if admit is not None:
            pixels_held = max(image.width * image.height, tile_pixels)
            admit(pixels_held * (2 if _takes_double(image, data) else 1))
        pixels = _decode_webp(data, image, frames)
        if pixels is None:
            pixels = _decode_in_strips(image)
        stored = (image.width, image.height)
        # Last, because a PNG may carry its EXIF after the pixels, and because loading a TIFF turns
        # it upright and takes the tag away.
        orientation = _orientation(image)
    return _upright(pixels, image_format, orientation, stored, frames=frames)


def _upright(
    pixels: NDArray[np.uint8],
    image_format: str,
    orientation: int,
    stored: tuple[int, int],
    *,
    frames: int = 1,
    reduction: int = 1,
) -> DecodedImage:
    """The image of pixels as they are stored, in a file of (width, height)."""
    size = stored if orientation >= 5 else stored[::-1]
    return DecodedImage(_turn_upright(pixels, orientation), image_format, frames, reduction, size)


def _reduction(long_side: int, enough: int | None) -> int:
    """The most that leaves `enough` pixels."""
    if enough is None:
        return 1
    return next((factor for factor in (8, 4, 2) if long_side >= factor * enough), 1)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if max(width, height) > _MAX_SIDE:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels; at most {_MAX_SIDE} a side are accepted."
        )
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels; at most {max_pixels} in all are accepted."
        )


def _check_parts(image: ImageFile.ImageFile) -> None:
    """Hold the parts of a picture (a TIFF's strips or tiles) to what there is of it.

    Pillow decodes each, also where it covers what others have covered, and reads no more of it at a
    time than up to where the next one begins, so parts may not overlap in the file.
    """
    parts = sorted(image.tile, key=lambda part: part.offset)
    sizes = [
        (right - left) * (lower - top)
        for left, top, right, lower in (part.extents or (0, 0, 0, 0) for part in parts)
    ]
    # Each colour may have parts of its own, those that Pillow leaves out included.
    if sum(sizes) > image.width * image.height * (len(image.getbands()) + 2):
        raise ValueError("strips or tiles that cover the image several times")
    bits = _LEAST_BITS.get(image.mode, 8)
    for (part, following), size in zip(pairwise(parts), sizes, strict=False):
        if 0 < following.offset - part.offset < size * bits // 8:
            raise ValueError("strips or tiles that overlap")


def _check_tile(image: Image.Image, max_pixels: int) -> int:
    """Pixels of a TIFF's tile, which is decoded whole, however small the image it belongs to."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    width = int(image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 1))
    height = int(image.tag_v2.get(TiffImagePlugin.TILELENGTH, 1))
    _check_pixels(width, height, max_pixels)
    if width * height > max(_USUAL_TILE_PIXELS, 4 * image.width * image.height):
        raise ValueError("a TIFF tile much larger than its image")
    return width * height


def _takes_double(image: Image.Image, data: bytes) -> bool:
    """Whether decoding takes 9 to 13 bytes a pixel, not 7."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ())
        return len(bits) > 1 and (len(bits) > len(image.getbands()) or max(bits) > 8)
    if image.format == "WEBP":
        return data[12:16] == b"VP8X" and bool(data[20] & _MOVES)
    return image.mode == "CMYK" and bool(image.info.get("progressive"))


def _frame_count(image: Image.Image, image_format: str) -> int:
    """Frames of an animation; a JPEG's further images (gain map, preview) are none."""
    if image_format == "JPEG":
        return 1
    return min(int(getattr(image, "n_frames", 1)), MAX_COUNTED_FRAMES)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG in RGB, YCbCr or grey; None of what only Pillow reads."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in ("RGB", "YCbCr", "Gray") else None


def _jpeg_orientation(data: bytes) -> int:
    with Image.open(BytesIO(data), formats=["JPEG"]) as image:
        return _orientation(image)


def _decode_jpeg(data: bytes, size: tuple[int, int], reduction: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG straight into [H, W, 3] RGB, its sides reduced and rounded up.

    The same pixels as Pillow's, which keeps four bytes a pixel and copies them out: more memory and
    time in the most common case. None sends the image to Pillow, which has the better words for
    what is broken, and reads on where that can be borne.
    """
    width, height = (-(-side // reduction) for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
    except ValueError:
        return None
    return np.asarray(pixels, np.uint8) if pixels.shape == (height, width, 3) else None


def _decode_webp(data: bytes, image: Image.Image, frames: int) -> NDArray[np.uint8] | None:
    """As _decode_jpeg, for a WebP that does not move; None for all else.

    Where it is transparent, Pillow takes 13 bytes a pixel.
    """
    if image.format != "WEBP" or image.mode not in _WEBP_FLAGS or frames != 1:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _WEBP_FLAGS[image.mode])
    if pixels is None or pixels.shape != (image.height, image.width, len(image.mode)):
        return None
    if image.mode == "RGB":
        return np.asarray(pixels, np.uint8)
    cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA, dst=pixels)
    opaque = np.empty((image.height, image.width, 3), np.uint8)
    for rows in _strip_rows(image.width, image.height):
        opaque[rows] = _over_white(Image.fromarray(pixels[rows]))
    return opaque


def _decode_in_strips(image: Image.Image) -> NDArray[np.uint8]:
    """Load with Pillow, convert to [H, W, 3] uint8 RGB strip by strip to bound the memory."""
    image.load()
    convert = _converter(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, strip in _strips(image):
        pixels[rows] = convert(strip)
    return pixels


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    for rows in _strip_rows(image.width, image.height):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _strip_rows(width: int, height: int) -> Iterator[slice]:
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _converter(image: Image.Image) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """The function from a strip of ``image`` to what broadcasts to [h, w, 3] uint8 RGB."""
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        white = _white_level(image)
        inverted = _is_white_zero(image)
        return lambda strip: _grey_to_8_bit(np.asarray(strip), white=white, inverted=inverted)
    if image.has_transparency_data:
        return _over_white
    return lambda strip: np.asarray(strip.convert("RGB"))


def _white_level(image: Image.Image) -> float:
    """The value that is white in a deep grey image.

    16-bit samples end at 65535. Wider integers and floats have no agreed end: it is the smallest
    usual one (1, 255, 65535) that holds every sample, or else the largest sample.
    """
    if image.mode.startswith("I;16"):
        return 65535.0
    peak = max(
        float(np.max(values, initial=0, where=np.isfinite(values)))
        for values in (np.asarray(strip) for _, strip in _strips(image))
    )
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((level for level in usual if peak <= level), peak)


def _is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black; Pillow minds that for 8 bits only."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    )


def _grey_to_8_bit(
    samples: NDArray[np.generic], *, white: float, inverted: bool
) -> NDArray[np.uint8]:
    """[h, w] samples to [h, w, 1] uint8: 0 stays 0, ``white`` becomes 255, the rest is linear."""
    finite = np.nan_to_num(samples.astype(np.float32), nan=0.0)
    scaled = finite.clip(0.0, white) * np.float32(255.0 / white)
    grey: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    if inverted:
        grey = ~grey
    return grey[..., np.newaxis]


def _over_white(strip: Image.Image) -> NDArray[np.uint8]:
    layer = strip.convert("RGBA")
    page = Image.new("RGB", layer.size, "white")
    page.paste(layer, mask=layer.getchannel("A"))
    return np.asarray(page)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where it is absent or unreadable, as viewers do."""
    try:
        check_directory(_exif_bytes(image))
        value: object = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif_bytes(image: Image.Image) -> bytes:
    """What Pillow would read as Exif data, of a JPEG, PNG or WebP."""
    if "exif" in image.info:
        exif: bytes = image.info["exif"]
    else:
        profile: str = image.info.get("Raw profile type exif", "")
        if len(profile) > _MAX_EXIF_TEXT:
            raise ValueError("too much Exif in a PNG's text")
        exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    return re.sub(b"^(Exif\0\0){1,2}", b"", exif)


def _turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation; flips happen in place, quarter turns need a second array."""
    if orientation in (5, 7):
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
    turns = {6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in turns:
        return np.asarray(cv2.rotate(pixels, turns[orientation]), np.uint8)
    flips = {2: 1, 3: -1, 4: 0, 7: -1}
    if orientation in flips:
        cv2.flip(pixels, flips[orientation], dst=pixels)
    return pixels
