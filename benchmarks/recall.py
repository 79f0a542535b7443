"""Which faces are found, by their size: the service's search against the plain baseline's.

    python -m benchmarks.recall [--photos 6]

Photos are composed from real faces of known sizes. In `group` all faces of a photo have one size;
in `company` a large face stands in front, as in a selfie, and the small ones are behind it, which
is where a search that starts small could stop too soon. A face is found where a box overlaps its
own by half. `extra` counts boxes that overlap no face.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.baseline.networks import Detector
from benchmarks.photos import SIZES, Scene, UInt8, compose
from service.faces.detector import FaceDetector
from service.faces.looks import Search
from service.runtime import SessionSettings
from service.settings import Settings

HEIGHTS = (16, 20, 24, 32, 48, 64, 96, 128)
SMALL_FACES = 11
LARGE_SHARE = 0.45  # of the photo's height
FOUND_IOU = 0.5
Boxes = NDArray[np.float64]
Find = Callable[[UInt8], Boxes]


@dataclass
class Count:
    """Of one kind of photo and one searcher."""

    faces: int = 0
    found: int = 0
    extra: int = 0
    photos: int = 0
    seconds: float = field(default=0.0)

    def text(self) -> str:
        """A cell of the table."""
        share = 100 * self.found / max(1, self.faces)
        return f"{share:.0f}% ({self.extra} extra, {1000 * self.seconds / self.photos:.0f} ms)"


def overlaps(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """Intersection over union of [N,4] and [M,4] boxes: [N,M]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, others)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared))


def scene_of(kind: str, size: str, height: float, rng: np.random.Generator) -> Scene:
    """A photo with faces of `height` pixels; in `company` the first box is the large face's."""
    heights = [height] * (SMALL_FACES + 1)
    if kind == "company":
        heights[0] = LARGE_SHARE * SIZES[size][0]
        return compose(SIZES[size], heights[:4], rng)
    return compose(SIZES[size], heights, rng)


def measure(count: Count, find: Find, scene: Scene, kind: str) -> None:
    """Add one photo to `count`."""
    started = time.process_time()
    boxes = find(scene.pixels)
    count.seconds += time.process_time() - started
    table = overlaps(scene.boxes, boxes) if len(boxes) else np.zeros((len(scene.boxes), 1))
    small = table[1:] if kind == "company" else table
    count.photos += 1
    count.faces += len(small)
    count.found += int((small.max(1) >= FOUND_IOU).sum())
    count.extra += int((table.max(0) < FOUND_IOU / 2).sum()) if len(boxes) else 0


def service_search(detector: FaceDetector, search: Search = "quick") -> Find:
    """The service's search, with its thresholds; takes [H,W,3] uint8 RGB."""

    def find(image: UInt8) -> Boxes:
        boxes = [face.box for face in detector.detect(image, search=search)]
        return np.array(boxes, np.float64).reshape(-1, 4)

    return find


def finders() -> dict[str, Find]:
    """The searches; all take [H,W,3] uint8 RGB."""
    path = Settings().detector_path
    service = FaceDetector.load(path, SessionSettings("cpu"))
    baseline = Detector(path, 1)

    def by_baseline(image: UInt8) -> Boxes:
        boxes = [face.box for face in baseline.detect(np.ascontiguousarray(image[..., ::-1]))]
        return np.array(boxes, np.float64).reshape(-1, 4)

    return {
        "baseline, own size": by_baseline,
        "service": service_search(service),
        "service, thorough": service_search(service, "thorough"),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=6, help="of each kind")
    parser.add_argument("--size", choices=("640x480", "1080p"), default="1080p")
    options = parser.parse_args()
    searches = finders()
    print(f"| {options.size} | height | {' | '.join(searches)} |")
    print("| --- | --- |" + " --- |" * len(searches))
    for kind in ("group", "company"):
        for height in HEIGHTS:
            rng = np.random.default_rng(height)
            counts: dict[str, Count] = defaultdict(Count)
            for _ in range(options.photos):
                scene = scene_of(kind, options.size, height, rng)
                for name, find in searches.items():
                    measure(counts[name], find, scene, kind)
            cells = " | ".join(counts[name].text() for name in searches)
            print(f"| {kind} | {height} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
