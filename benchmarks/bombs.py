"""What refusing each hostile file of the tests costs: `python -m benchmarks.bombs`.

Each file is decoded in a process of its own, with the service's limits: milliseconds of CPU time,
and by how much resident memory grew at most (the file itself not counted). Prints Markdown.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from service.errors import RequestError
from service.imaging import ImageLimits, decode_image
from service.settings import Settings
from tests.service.bombs import PIXELS, READ, REFUSED
from tests.service.fuzzing import corpus

KIBIBYTES_A_MEGABYTE = 1000


def measure(make: Callable[[], bytes], answer: Connection) -> None:
    """In the child: decode once, send (outcome, bytes, milliseconds, megabytes)."""
    settings = Settings()
    limits = ImageLimits(settings.max_body_bytes, settings.max_image_pixels)
    data = make()
    for photo in corpus():  # decoders load what they need at their first picture
        decode_image(photo, limits)
    before, started = _peak(), time.process_time()
    try:
        decode_image(data, limits)
        outcome = "read"
    except RequestError as error:
        outcome = str(error.status)
    milliseconds = (time.process_time() - started) * 1000
    answer.send((outcome, len(data), milliseconds, (_peak() - before) / KIBIBYTES_A_MEGABYTE))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure all, print a table."""
    context = multiprocessing.get_context("spawn")
    print("| File | MB | Outcome | CPU ms | Memory MB |\n|---|--:|---|--:|--:|")
    for make in (*PIXELS, *REFUSED, *READ):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=measure, args=(make, sender))
        child.start()
        outcome, size, milliseconds, megabytes = receiver.recv()
        child.join()
        name = make.__name__.replace("_", " ")
        print(f"| {name} | {size / 1e6:.1f} | {outcome} | {milliseconds:.1f} | {megabytes:.1f} |")


if __name__ == "__main__":
    main()
