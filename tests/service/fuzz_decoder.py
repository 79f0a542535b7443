"""Coverage-guided fuzzing of the decoder's edge with Atheris: `make fuzz-decoder`.

Whatever the bytes, decode_image gives a picture within its limits or raises one of our errors.
Arguments are libFuzzer's, such as -max_total_time=60 or -runs=100000.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service", "PIL"]):
    from service.errors import RequestError
    from service.imaging import ImageLimits, decode_image

from tests.service.fuzzing import corpus

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=250_000)


def decode(data: bytes) -> None:
    """One case; what is raised here is a finding."""
    try:
        image = decode_image(data, LIMITS)
    except RequestError:
        return
    height, width, channels = image.pixels.shape
    assert channels == 3
    assert 0 < height * width <= LIMITS.max_pixels
    assert image.frames >= 1


def main() -> None:
    """Fuzz from the corpus of the seeded mutator."""
    with tempfile.TemporaryDirectory() as folder:
        for number, photo in enumerate(corpus()):
            (Path(folder) / str(number)).write_bytes(photo)
        atheris.Setup([*sys.argv, folder], decode)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
