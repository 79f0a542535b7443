"""How landmarks, pose and answers hold where a face leans, and where the photo has another size.

    python -m benchmarks.landmarks --data DATA [--faces 150]

DATA is FERPlus in its official layout. Validation faces are drawn into scenes, so that the upright
photo tells where eyes and mouth are in the same photo turned. Prints two tables.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.photos import Portrait, Scene, UInt8, compose
from service.errors import ServiceError
from service.faces.alignment import head_pose
from service.faces.face import Face
from service.pipeline import Networks, load_networks
from service.settings import load_settings
from training.datasets import ferplus
from training.datasets.records import DatasetError
from training.preparation import read_image

LEANS = (15, 30, 45, 60, 75, 90, 120, 180)
# The photo is cut out of a scene so large that its turned corners are scene, too.
SIDE, SCENE, FACE = 640, 1120, 220
WIDTHS = (360, 480, 640, 960, 1280, 1920, 2560)
ENLARGED, BORDER = 192, 32
# Landmarks off by so much of the distance from eyes to mouth are not those of this face.
ASTRAY = 0.25

# By degrees: the landmarks' error and whether the answer is as upright; None: not found.
Ends = dict[int, list[tuple[float, bool] | None]]


def scene_of(image: UInt8, size: tuple[int, int], face: float, rng: np.random.Generator) -> Scene:
    """A photo of `size` (height, width) with the face, `face` pixels high, about its middle."""
    large = cv2.resize(image, (ENLARGED, ENLARGED), interpolation=cv2.INTER_CUBIC)
    framed = cv2.copyMakeBorder(large, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
    end = ENLARGED + BORDER
    portrait = Portrait(np.asarray(framed, np.uint8), (BORDER + 16, BORDER + 8, end - 16, end))
    return compose(size, [face], rng, (portrait,))


def face_at(networks: Networks, pixels: UInt8, x: float, y: float) -> Face | None:
    """The face there with the best score, if one is found."""
    faces = networks.detector.detect(pixels)
    there = (f for f in faces if f.box[0] < x < f.box[2] and f.box[1] < y < f.box[3])
    return max(there, key=lambda face: face.score, default=None)


def answer(networks: Networks, scene: UInt8, face: Face) -> int:
    """The most probable class."""
    (reading,) = networks.classifier.infer([networks.classifier.crop(scene, face)])
    return int(reading.probabilities.argmax())


def lean(networks: Networks, scene: Scene, found: Ends) -> None:
    """Turn one scene; `found` gets what came of it, by degrees."""
    upright = _turned(scene, 0)
    known = face_at(networks, upright, SIDE / 2, SIDE / 2)
    if known is None:
        return
    known_answer = answer(networks, upright, known)
    size = np.linalg.norm(known.landmarks[:2].mean(0) - known.landmarks[3:].mean(0))
    for degrees in (sign * degrees for degrees in LEANS for sign in (1, -1)):
        pixels = _turned(scene, degrees)
        face = face_at(networks, pixels, SIDE / 2, SIDE / 2)
        if face is None:
            found[abs(degrees)].append(None)
            continue
        turn = np.asarray(cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), -degrees, 1.0), np.float64)
        there = known.landmarks @ turn[:, :2].T + turn[:, 2]
        error = np.linalg.norm(face.landmarks - there, axis=1).mean() / size
        found[abs(degrees)].append((float(error), answer(networks, pixels, face) == known_answer))


def _turned(scene: Scene, degrees: float) -> UInt8:
    """A photo of the scene turned clockwise, the face in its middle."""
    x1, y1, x2, y2 = scene.boxes[0].tolist()
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    turn = np.asarray(cv2.getRotationMatrix2D((x, y), -degrees, 1.0), np.float64)
    turn[:, 2] += (SIDE / 2 - x, SIDE / 2 - y)
    return np.asarray(cv2.warpAffine(scene.pixels, turn, (SIDE, SIDE)), np.uint8)


def resize(networks: Networks, scene: Scene) -> NDArray[np.float64] | None:
    """How far yaw, pitch and roll [3] are apart over the sizes; None where one finds no face."""
    height, width = scene.pixels.shape[:2]
    x1, y1, x2, y2 = scene.boxes[0].tolist()
    poses = []
    for wide in WIDTHS:
        scale = wide / width
        by = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        size = (wide, round(height * scale))
        pixels = np.asarray(cv2.resize(scene.pixels, size, interpolation=by), np.uint8)
        face = face_at(networks, pixels, (x1 + x2) / 2 * scale, (y1 + y2) / 2 * scale)
        if face is None:
            return None
        pose = head_pose(face.landmarks)
        poses.append((pose.yaw, pose.pitch, pose.roll))
    return np.asarray(np.ptp(np.array(poses), axis=0))


def run(options: argparse.Namespace) -> None:
    """Print both tables. Raises DatasetError, ServiceError."""
    split = ferplus.load_split(options.data, "valid")
    networks = load_networks(load_settings())
    rng = np.random.default_rng(1)
    chosen = rng.choice(len(split), min(options.faces, len(split)), replace=False)
    found: Ends = defaultdict(list)
    ranges = []
    for index in chosen:
        image = read_image(split.paths[index])
        lean(networks, scene_of(image, (SCENE, SCENE), FACE, rng), found)
        ranges.append(resize(networks, scene_of(image, (960, 1280), 2 * FACE, rng)))
    print(
        "| leans, degrees | found | landmarks astray | answer as upright |\n" + "| --- " * 4 + "|"
    )
    for degrees, ends in found.items():
        read = [end for end in ends if end is not None]
        astray, same = (np.mean(v) for v in ([e > ASTRAY for e, _ in read], [s for _, s in read]))
        print(f"| {degrees} | {len(read) / len(ends):.0%} | {astray:.0%} | {same:.0%} |")
    apart = np.array([row for row in ranges if row is not None])
    print(f"\n{len(apart)} faces in photos {WIDTHS} pixels wide, degrees between extremes:\n")
    print("| | yaw | pitch | roll |\n| --- | --- | --- | --- |")
    for name, share in (("half of the faces up to", 0.5), ("nine of ten up to", 0.9)):
        cells = " | ".join(f"{value:.0f}" for value in np.quantile(apart, share, axis=0))
        print(f"| {name} | {cells} |")


def main(arguments: list[str] | None = None) -> int:
    """Data or networks that are not there print one line and give exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--faces", type=int, default=150)
    try:
        run(parser.parse_args(arguments))
    except (DatasetError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
