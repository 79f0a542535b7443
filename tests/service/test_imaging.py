"""decode_image and encode_image on real encoded bytes of every format, mode and orientation."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from service.errors import ImageTooLargeError
from service.imaging import ImageLimits, decode_image, encode_image
from tests.service.image_files import (
    LIMITS,
    animation,
    assert_near,
    encoded,
    exif,
    picture,
    pixels_of,
    rgb,
)

# The upright picture from the stored one, for each EXIF orientation.
UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, k=-1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, k=1),
}


# --- formats and what a decoded image promises -------------------------------------------------


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "raw"}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"compression": "packbits"}),
    ],
)
def test_lossless_formats_give_every_pixel_back(
    image_format: str, options: dict[str, object]
) -> None:
    decoded = decode_image(encoded(rgb(), image_format, **options), LIMITS)
    np.testing.assert_array_equal(decoded.pixels, picture())
    assert decoded.format == image_format
    assert decoded.frames == 1
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_decodes_as_pillow_does_in_rgb_order(options: dict[str, object]) -> None:
    data = encoded(rgb(height=60, width=50), "JPEG", quality=95, **options)
    decoded = decode_image(data, LIMITS)
    assert decoded.format == "JPEG"
    assert decoded.pixels.flags.c_contiguous
    with Image.open(io.BytesIO(data)) as reference:
        assert_near(decoded.pixels, np.asarray(reference), tolerance=2)
    assert_near(decoded.pixels, picture(60, 50), tolerance=40)


def test_lossy_webp_decodes_as_pillow_does() -> None:
    data = encoded(rgb(height=60, width=50), "WEBP", quality=90)
    with Image.open(io.BytesIO(data)) as reference:
        assert_near(pixels_of(data), np.asarray(reference), tolerance=2)


def test_an_image_of_many_strips_is_put_together_in_order() -> None:
    tall = picture(height=3000, width=700)  # three strips
    limits = ImageLimits(10_000_000, 3_000_000)
    decoded = decode_image(encoded(Image.fromarray(tall), "PNG", compress_level=1), limits)
    np.testing.assert_array_equal(decoded.pixels, tall)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_single_pixel_is_an_image(image_format: str) -> None:
    pixel = Image.new("RGB", (1, 1), (255, 0, 0))
    assert_near(pixels_of(encoded(pixel, image_format)), np.array([[[255, 0, 0]]]), tolerance=3)


# --- orientation -------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_every_exif_orientation_comes_out_upright(image_format: str, orientation: int) -> None:
    options: dict[str, object] = {"lossless": True} if image_format == "WEBP" else {}
    if image_format == "JPEG":
        options = {"quality": 100, "subsampling": 0}
    pixels = pixels_of(encoded(rgb(), image_format, exif=exif(orientation), **options))
    assert pixels.flags.c_contiguous
    assert_near(pixels, UPRIGHT[orientation](picture()), tolerance=6)


def test_orientation_of_a_grey_jpeg_and_a_cmyk_jpeg() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(rgb().convert(mode), "JPEG", quality=100, exif=exif(6))
        expected = UPRIGHT[6](np.asarray(rgb().convert(mode).convert("RGB")))
        assert_near(pixels_of(data), expected, tolerance=12)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(value: int) -> None:
    np.testing.assert_array_equal(pixels_of(encoded(rgb(), "PNG", exif=exif(value))), picture())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0nonsense in here"])
def test_broken_exif_does_not_refuse_a_photo(block: bytes) -> None:
    assert pixels_of(encoded(rgb(), "JPEG", exif=block)).shape == (20, 24, 3)


# --- colour modes ------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "JPEG", "GIF"])
def test_grey_becomes_three_equal_channels(image_format: str) -> None:
    grey = rgb().convert("L")
    pixels = pixels_of(encoded(grey, image_format))
    np.testing.assert_array_equal(pixels, pixels[..., :1].repeat(3, axis=2))
    assert_near(pixels[..., 0], np.asarray(grey), tolerance=12 if image_format == "JPEG" else 0)


def test_bilevel_is_black_and_white() -> None:
    bits = rgb().convert("1")
    for image_format in ("PNG", "BMP", "TIFF"):
        pixels = pixels_of(encoded(bits, image_format))
        np.testing.assert_array_equal(pixels, np.asarray(bits.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_is_looked_up(image_format: str) -> None:
    palette = rgb().quantize(32)
    pixels = pixels_of(encoded(palette, image_format))
    np.testing.assert_array_equal(pixels, np.asarray(palette.convert("RGB")))


def over_white(image: Image.Image) -> NDArray[np.uint8]:
    layer = np.asarray(image.convert("RGBA")).astype(float)
    alpha = layer[..., 3:] / 255.0
    return np.rint(layer[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGBA", "PNG", {}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("LA", "PNG", {}),
    ],
)
def test_transparency_is_laid_over_white(
    mode: str, image_format: str, options: dict[str, object]
) -> None:
    image = rgb()
    image.putalpha(Image.fromarray(picture(seed=1)[..., 0]))
    image = image.convert(mode)
    assert_near(pixels_of(encoded(image, image_format, **options)), over_white(image), tolerance=1)


def test_a_transparent_palette_entry_and_a_transparent_colour_turn_white() -> None:
    indices = np.arange(480, dtype=np.uint8).reshape(20, 24) % 4
    palette = Image.fromarray(indices, "L").convert("P")
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    expected = np.array([[0, 0, 0], [255, 255, 255], [0, 200, 0], [0, 0, 200]], np.uint8)[indices]
    for image_format in ("PNG", "GIF"):
        pixels = pixels_of(encoded(palette, image_format, transparency=1))
        np.testing.assert_array_equal(pixels, expected)

    red = Image.fromarray(expected).convert("RGB")
    keyed = pixels_of(encoded(red, "PNG", transparency=(0, 200, 0)))
    np.testing.assert_array_equal(keyed[indices == 2], 255)
    np.testing.assert_array_equal(keyed[indices == 3], np.tile([0, 0, 200], (120, 1)))


def test_cmyk_and_ycbcr_come_out_in_their_colours() -> None:
    red = Image.new("RGB", (16, 16), (230, 20, 30))
    for data in (
        encoded(red.convert("CMYK"), "JPEG", quality=100),  # Adobe: stored inverted
        encoded(red.convert("CMYK"), "TIFF"),
        encoded(red.convert("YCbCr"), "TIFF"),
        encoded(red, "TIFF", compression="jpeg"),
    ):
        assert_near(pixels_of(data), np.asarray(red), tolerance=8)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(image_format: str) -> None:
    samples = np.linspace(0, 65535, 480).astype(np.uint16).reshape(20, 24)
    pixels = pixels_of(encoded(Image.fromarray(samples), image_format))
    expected = np.rint(samples / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def test_a_16_bit_tiff_that_counts_from_white_to_black_is_not_a_negative() -> None:
    samples = np.linspace(0, 65535, 480).astype(np.uint16).reshape(20, 24)
    data = encoded(Image.fromarray(samples), "TIFF", tiffinfo={262: 0})
    expected = 255 - np.rint(samples / 257.0).astype(np.uint8)
    assert_near(pixels_of(data), np.repeat(expected[..., None], 3, axis=2), tolerance=1)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour_is_scaled_not_clipped(suffix: str) -> None:
    deep = picture().astype(np.uint16) * 257
    _, data = cv2.imencode(suffix, deep[..., ::-1])  # OpenCV writes BGR
    assert_near(pixels_of(data.tobytes()), picture(), tolerance=1)


@pytest.mark.parametrize(
    ("samples", "white"),
    [
        (np.linspace(0.0, 1.0, 480, dtype=np.float32), 1.0),
        (np.linspace(0.0, 250.0, 480, dtype=np.float32), 255.0),
        (np.linspace(0.0, 1e6, 480, dtype=np.float32), 1e6),
        (np.linspace(0, 60_000, 480, dtype=np.int32), 65535.0),
        (np.linspace(0, 1_000_000, 480, dtype=np.int32), 1e6),
    ],
)
def test_wide_samples_are_scaled_to_the_white_they_imply(
    samples: NDArray[np.generic], white: float
) -> None:
    square = samples.reshape(20, 24)
    pixels = pixels_of(encoded(Image.fromarray(square), "TIFF"))
    expected = np.rint(square.astype(float) * 255.0 / white)
    assert_near(pixels, np.repeat(expected[..., None], 3, axis=2), tolerance=1)


def test_floating_point_images_may_hold_anything() -> None:
    samples = np.tile(np.array([np.nan, np.inf, -np.inf, -5.0, 0.5, 1.0], np.float32), (4, 1))
    pixels = pixels_of(encoded(Image.fromarray(samples), "TIFF"))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 255, 0, 0, 128, 255])


# --- frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "image_format"),
    [
        (animation("GIF", duration=20), "GIF"),
        (animation("GIF", duration=20, loop=0, disposal=2, comment=b"hello"), "GIF"),
        (animation("WEBP", lossless=True), "WEBP"),
        (animation("PNG"), "PNG"),
        (animation("TIFF"), "TIFF"),
    ],
)
def test_the_first_of_several_frames_is_taken_and_all_are_counted(
    data: bytes, image_format: str
) -> None:
    decoded = decode_image(data, LIMITS)
    assert decoded.format == image_format
    assert decoded.frames == 3
    first = picture() if image_format != "GIF" else np.asarray(rgb().quantize().convert("RGB"))
    assert_near(decoded.pixels, first, tolerance=60 if image_format == "GIF" else 0)


def test_the_further_images_of_a_phone_photo_are_no_frames() -> None:
    decoded = decode_image(animation("MPO"), LIMITS)
    assert decoded.format == "JPEG"
    assert decoded.frames == 1


# --- encoding ----------------------------------------------------------------------------------


def test_png_gives_every_pixel_back() -> None:
    data = encode_image(picture(), "image/png")
    decoded = decode_image(data, LIMITS)
    assert decoded.format == "PNG"
    np.testing.assert_array_equal(decoded.pixels, picture())


def test_jpeg_keeps_the_colours_in_their_order() -> None:
    red = np.full((32, 32, 3), (220, 30, 40), np.uint8)
    decoded = decode_image(encode_image(red, "image/jpeg"), LIMITS)
    assert decoded.format == "JPEG"
    assert_near(decoded.pixels, red, tolerance=4)


def test_what_cannot_be_encoded_is_said() -> None:
    with pytest.raises(ValueError, match="image/webp"):
        encode_image(picture(), "image/webp")


def test_a_picture_too_long_for_a_jpeg_is_told_so() -> None:
    assert encode_image(np.zeros((1, 65_500, 3), np.uint8), "image/jpeg")
    with pytest.raises(ImageTooLargeError, match=r"at most 65500 .* ask for image/png"):
        encode_image(np.zeros((1, 65_501, 3), np.uint8), "image/jpeg")


@pytest.mark.parametrize("size", [(65_536, 2), (2, 65_536)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_a_side_is_limited(kind: str, size: tuple[int, int]) -> None:
    """Of a line, decoders keep far more bytes than its pixels have."""
    width, height = size
    with pytest.raises(ImageTooLargeError, match="at most 65535 a side"):
        decode_image(encoded(rgb(width, height), kind), LIMITS)
    longest = rgb(min(width, 65_535), min(height, 65_535))
    assert decode_image(encoded(longest, kind), LIMITS).size == (longest.height, longest.width)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("enough", [50, 60, 101, 200])
def test_a_reduced_jpeg_is_the_same_picture(orientation: int, enough: int) -> None:
    x, y = np.meshgrid(np.arange(203), np.arange(101))
    pixels = np.stack((x, 2 * y, 255 - x), -1).astype(np.uint8)
    buffer = io.BytesIO()
    tag = exif(orientation)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, exif=tag)
    whole = decode_image(buffer.getvalue(), LIMITS)
    reduced = decode_image(buffer.getvalue(), LIMITS, enough=enough)
    assert reduced.reduction == {50: 4, 60: 2, 101: 2, 200: 1}[enough]
    assert reduced.size == whole.size == whole.pixels.shape[:2]
    assert max(reduced.pixels.shape) >= enough
    height, width = (side // reduced.reduction for side in whole.size)
    small = cv2.resize(whole.pixels, (width, height), interpolation=cv2.INTER_AREA)
    shared = reduced.pixels[2 : height - 2, 2 : width - 2].astype(int)
    assert np.abs(shared - small[2 : height - 2, 2 : width - 2]).mean() < 8


def test_orientation_that_xmp_alone_gives_is_followed() -> None:
    described = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
        ' xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    data = encoded(rgb(64, 48), "JPEG", xmp=described.encode())
    assert decode_image(data, LIMITS).pixels.shape == (48, 64, 3)


def test_what_pillow_reads_of_a_jpeg_is_read_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, each copied with all before it, padding of 16 MB took a second."""
    reads: list[int] = []
    load_read = JpegImagePlugin.JpegImageFile.load_read

    def counted(image: JpegImagePlugin.JpegImageFile, size: int) -> bytes:
        reads.append(size)
        return load_read(image, size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load_read", counted)
    whole = encoded(rgb(64, 48).convert("CMYK"), "JPEG")  # Pillow alone reads it
    end = whole.rindex(b"\xff\xd9")
    padded = whole[:end] + b"\xff" * 1_000_000 + whole[end:]
    pixels = decode_image(padded, LIMITS).pixels
    assert reads == [len(padded)]
    assert np.array_equal(pixels, decode_image(whole, LIMITS).pixels)


@pytest.mark.parametrize(
    ("data", "times"),
    [
        (encoded(rgb(64, 48).convert("CMYK"), "JPEG", progressive=True), 2),
        (encoded(rgb(64, 48).convert("CMYK"), "JPEG"), 1),
        (encoded(rgb(64, 48), "WEBP", save_all=True, append_images=[rgb(64, 48, seed=1)]), 2),
        (encoded(rgb(64, 48), "WEBP"), 1),
    ],
    ids=["progressive CMYK", "CMYK", "moving WebP", "WebP"],
)
def test_kinds_that_take_twice_the_memory_count_twice(data: bytes, times: int) -> None:
    admitted: list[int] = []
    decode_image(data, LIMITS, admit=admitted.append)
    assert admitted == [times * 64 * 48]


def test_a_jpeg_that_only_pillow_reads_is_admitted_once() -> None:
    whole = encoded(rgb(64, 48), "JPEG")
    end = whole.rindex(b"\xff\xd9")
    junk = whole[:end] + bytes(20) + whole[end:]  # libjpeg warns of it
    admitted: list[int] = []
    decoded = decode_image(junk, LIMITS, admit=admitted.append)
    assert np.array_equal(decoded.pixels, decode_image(whole, LIMITS).pixels)
    assert admitted == [64 * 48]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_video_behind_the_photo_is_no_part_of_it(progressive: bool) -> None:
    """Phones append one; its bytes look like all that a JPEG can hold."""
    photo = encoded(rgb(64, 48), "JPEG", progressive=progressive)
    video = np.random.default_rng(0).bytes(9_000_000)
    whole = decode_image(photo + video, LIMITS)
    assert np.array_equal(whole.pixels, decode_image(photo, LIMITS).pixels)


def test_other_formats_are_never_reduced() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), LIMITS, enough=10).pixels.shape == (300, 400, 3)
