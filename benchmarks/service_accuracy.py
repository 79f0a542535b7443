"""Accuracy through the running service: POST every validation image, compare with its label.

    lan-fer serve &
    python benchmarks/service_accuracy.py --data DATA [--url http://127.0.0.1:8000]

`--border 48 --enlarge 3` sends each image enlarged and with a replicated border, as the face
would stand in a photo, instead of the tight 48 x 48 picture that is in the file. A face that is
not found counts as wrong. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np

from training.datasets import ferplus
from training.datasets.records import DatasetError
from training.preparation import read_image
from training.progress import progress


def request_body(path: Path, enlarge: float, border: int) -> bytes:
    """PNG bytes to send."""
    if enlarge == 1 and not border:
        return path.read_bytes()
    image = read_image(path)
    large = cv2.resize(image, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
    framed = cv2.copyMakeBorder(large, border, border, border, border, cv2.BORDER_REPLICATE)
    return cv2.imencode(".png", framed[..., ::-1])[1].tobytes()


def answer(client: httpx.Client, body: bytes) -> str | None:
    """The label of the largest face, None where no face was found."""
    reply = client.post("/predict", content=body, headers={"Content-Type": "image/png"}, timeout=60)
    faces = reply.raise_for_status().json()["faces"]
    return str(faces[0]["expression"]["label"]) if faces else None


def main(arguments: list[str] | None = None) -> int:
    """Data that is not there prints one line and gives exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--enlarge", type=float, default=1)
    parser.add_argument("--border", type=int, default=0)
    parser.add_argument("--clients", type=int, default=4)
    try:
        run(parser.parse_args(arguments))
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Send the split, print the figures. Raises DatasetError."""
    split = ferplus.load_split(options.data, "valid")

    def ask(path: Path) -> str | None:
        return answer(client, request_body(path, options.enlarge, options.border))

    with httpx.Client(base_url=options.url) as client, ThreadPoolExecutor(options.clients) as pool:
        answers = list(progress(pool.map(ask, split.paths), "asked", len(split), unit="img"))
    truth = [split.labels[i] for i in split.classes]
    right = np.array([a == t for a, t in zip(answers, truth, strict=True)])
    totals, hits = Counter(truth), Counter(t for t, r in zip(truth, right, strict=True) if r)
    print(
        json.dumps(
            {
                "images": len(truth),
                "not_found": sum(a is None for a in answers),
                "accuracy": round(float(right.mean()), 4),
                "recall": {label: round(hits[label] / totals[label], 4) for label in totals},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
