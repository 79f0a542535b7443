"""Does the data loader keep the network busy? Images a second of each alone, and of both together.

    python -m training throughput --data DATA --batch-size 256 --workers 8

Takes the options of `train`, and measures what `train` would do with them on this machine, in one
process: the same crops and augmentation, the same step. Nothing is learnt and nothing written but
the landmarks of images that were not prepared yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice, repeat
from typing import Any

import torch

from training.backbones import load_backbone
from training.config import TrainingConfig
from training.crops import GRID, Batch, CropDataset, batches
from training.datasets.records import evenly_spread
from training.datasets.registry import Choice, find_dataset
from training.distributed import CPU, World
from training.lan import Lan
from training.pipeline import PreparedSplit, RunPaths, prepare_split, require_sound
from training.trainer import Trainer

# Of the network's own rate: what counts as kept busy.
BUSY = 0.95
# Batches before the clock starts: compilation, cuDNN's search, the first pages from disk.
WARM_UP = 3
# Progress at which the learning rate is zero: steps cost what they cost and change no weight.
END = 1.0


@dataclass(frozen=True)
class Throughput:
    """Images a second, measured after a warm-up; a pass that ends is followed by the next one."""

    loader: float
    """Reading, warping, augmenting and batching alone."""
    network: float
    """Training steps alone, on one random batch in memory (its copy to the device included)."""
    together: float
    """Training steps on what the loader brings."""
    first_batch_seconds: float
    """From the start of a pass to its first batch: every epoch waits for that."""
    workers: int
    batch_size: int
    device: str

    @property
    def ratio(self) -> float:
        """The loader's rate over the network's."""
        return self.loader / self.network

    @property
    def busy(self) -> float:
        """The rate of both together over the network's."""
        return self.together / self.network

    def as_dict(self) -> dict[str, Any]:
        """Plain values, rounded, with the ratios."""
        values = asdict(self) | {"ratio": self.ratio, "busy": self.busy}
        return {n: round(v, 3) if isinstance(v, float) else v for n, v in values.items()}

    def text(self) -> str:
        """For people."""
        lines = (
            f"loader alone:   {self.loader:.0f} images/s with {self.workers} workers, "
            f"first batch after {self.first_batch_seconds:.2f} s",
            f"network alone:  {self.network:.0f} images/s in batches of {self.batch_size} "
            f"on {self.device}",
            f"loader/network: {self.ratio:.2f}",
            f"both together:  {self.together:.0f} images/s, {self.busy:.0%} of the network alone",
            self._verdict(),
        )
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.busy >= BUSY:
            return "the loader keeps the network busy"
        if self.ratio < 1:
            needed = math.ceil(max(1, self.workers) / self.ratio)
            return f"the network waits for the loader; about {needed} workers would keep up"
        if not self.workers:
            return "loader and network take turns; one worker or more would let them overlap"
        return "the loader is fast enough, but takes processor time from the network"


def measure_throughput(
    config: TrainingConfig, paths: RunPaths, *, seconds: float, images: int = 0
) -> Throughput:
    """Measure for `seconds` each, on the training split or evenly drawn `images` of it (0: all).

    On a GPU where there is one. Raises DatasetError, TrainingError, CheckpointError.
    """
    require_sound(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    prepared = _prepared(config, paths, images)
    classes = len(prepared.split.labels)
    backbone = load_backbone(config.backbone, paths.weights)
    network = Lan(backbone, classes, fusion=config.fusion, dropout=config.dropout)
    world = World(device=torch.device("cuda") if torch.cuda.is_available() else CPU)
    trainer = Trainer(network, config, paths.run, {}, world=world)
    trainer.set_mode()
    crops = CropDataset(
        prepared.split,
        prepared.faces,
        backbone.input_size,
        augmentation=config.augmentation,
        seed=config.seed,
    )

    def train(batch: Batch) -> None:
        trainer.step(batch, END)

    noise = repeat(random_batch(config.batch_size, crops.size, classes))
    alone, _ = rate(noise, train, seconds=seconds, warm_up=WARM_UP)
    warm_up = max(WARM_UP, 2 * config.workers)  # what waits in the workers' queues
    loader, first = rate(endless(crops, config), lambda _: None, seconds=seconds, warm_up=warm_up)
    together, _ = rate(endless(crops, config), train, seconds=seconds, warm_up=warm_up)
    return Throughput(
        loader=loader,
        network=alone,
        together=together,
        first_batch_seconds=first,
        workers=config.workers,
        batch_size=config.batch_size,
        device=torch.cuda.get_device_name() if world.device != CPU else "the CPU",
    )


def rate(
    source: Iterator[Batch],
    use: Callable[[Batch], None],
    *,
    seconds: float,
    warm_up: int,
) -> tuple[float, float]:
    """Images a second from an endless `source` through `use`, and the wait for its first batch.

    The first `warm_up` batches are used but not counted; one at least is.
    """
    started = time.perf_counter()
    first = next(source)
    waited = time.perf_counter() - started
    use(first)
    for batch in islice(source, max(0, warm_up - 1)):
        use(batch)
    images, elapsed, started = 0, 0.0, time.perf_counter()
    for batch in source:
        use(batch)
        images += len(batch.images)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    return images / elapsed, waited


def endless(crops: CropDataset, config: TrainingConfig) -> Iterator[Batch]:
    """Pass after pass, as `train` goes through its epochs."""
    for crops.epoch in count():
        yield from batches(
            crops,
            config.batch_size,
            shuffle=True,
            balanced=config.balanced,
            workers=config.workers,
        )


def random_batch(count: int, size: int, classes: int) -> Batch:
    """A batch as the loader gives them (in pinned memory where there is a GPU), of noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(
        pixels.permute(0, 3, 1, 2),
        torch.rand(count, classes, generator=generator).softmax(1),
        torch.rand(count, GRID, GRID, generator=generator),
        torch.arange(count),
    )
    if torch.cuda.is_available():
        return Batch(*(tensor.pin_memory() for tensor in batch))
    return batch


def _prepared(config: TrainingConfig, paths: RunPaths, images: int) -> PreparedSplit:
    choice = Choice(majority_only=config.majority_only, fold=paths.fold)
    split = find_dataset(paths.dataset).load(paths.data, "train", choice)
    if 0 < images < len(split):
        split = split.subset(evenly_spread(len(split), images))
    return prepare_split(split, paths)
