"""Rates of loader and network: what is counted, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.training.made_up import grey_face, made_up_crops, write_png
from training.cli import main
from training.config import TrainingConfig
from training.crops import batches
from training.throughput import Throughput, endless, random_batch, rate


def throughput(*, loader: float, together: float, workers: int = 2) -> Throughput:
    return Throughput(
        loader=loader,
        network=100,
        together=together,
        first_batch_seconds=0.25,
        workers=workers,
        batch_size=64,
        device="the CPU",
    )


def test_the_warm_up_is_used_and_not_counted() -> None:
    used: list[int] = []
    source = (random_batch(count, 8, 2) for count in (1, 2, 3, 4, 5))
    per_second, waited = rate(source, lambda b: used.append(len(b.images)), seconds=0, warm_up=3)
    assert used == [1, 2, 3, 4], "no time at all: one batch is counted"
    assert per_second > 0
    assert waited > 0


def test_passes_follow_each_other_as_epochs_do(tmp_path: Path) -> None:
    crops = made_up_crops(tmp_path, 8)
    seen = [b.indices.tolist() for b in islice(endless(crops, TrainingConfig(batch_size=4)), 4)]
    expected = []
    for crops.epoch in (0, 1):
        expected += [b.indices.tolist() for b in batches(crops, 4, shuffle=True)]
    assert seen == expected
    assert seen[:2] != seen[2:]


def test_the_random_batch_is_like_the_loaders(tmp_path: Path) -> None:
    crops = made_up_crops(tmp_path, 4)
    (loaded,) = batches(crops, 4, shuffle=False)
    for made_up, real in zip(random_batch(4, 28, 3), loaded, strict=True):
        assert (made_up.shape, made_up.dtype) == (real.shape, real.dtype)
        assert made_up.stride() == real.stride()
    assert torch.equal(random_batch(4, 28, 3).images, random_batch(4, 28, 3).images)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (throughput(loader=900, together=97), "the loader keeps the network busy"),
        (throughput(loader=40, together=39), "about 5 workers would keep up"),
        (throughput(loader=40, together=29, workers=0), "about 3 workers would keep up"),
        (throughput(loader=900, together=90, workers=0), "one worker or more"),
        (throughput(loader=900, together=60), "takes processor time from the network"),
    ],
)
def test_the_words_say_what_to_do(measured: Throughput, verdict: str) -> None:
    assert verdict in measured.text().splitlines()[-1]


def test_the_ratios_are_of_the_networks_rate() -> None:
    measured = throughput(loader=250, together=95)
    assert measured.as_dict() == dataclasses.asdict(measured) | {"ratio": 2.5, "busy": 0.95}
    assert "loader/network: 2.50" in measured.text()
    assert "95% of the network alone" in measured.text()


def test_the_command_measures_a_folder(
    tmp_path: Path, detector_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, half in enumerate((60, 64, 68, 72, 76, 80)):
        write_png(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", grey_face(half))
    options = ["throughput", "--dataset", "folder", "--data", str(tmp_path / "photos"), "--json"]
    options += ["--cache", str(tmp_path / "cache"), "--detector", str(detector_path)]
    options += ["--batch-size", "2", "--images", "3", "--seconds", "0", "--workers", "1"]
    assert main(options) == 0
    printed = capsys.readouterr()
    assert "3 images: " in printed.err
    answer = json.loads(printed.out)
    assert answer["workers"] == 1
    assert min(answer[name] for name in ("loader", "network", "together", "ratio", "busy")) > 0
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["landmarks.jsonl"]
