"""Aligned crops of a split as a torch data set, warped when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
)

from service.faces.alignment import compose, warp_crop
from training.augmentation import (
    Augmentation,
    move_grid,
    photometric,
    sample_affine,
    sample_turn,
    turn_grid,
)
from training.datasets.records import Split
from training.preparation import Prepared, read_image
from training.turning import sources

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

MEAN, STD = 127.5, 128.0
GRID = 7


class Batch(NamedTuple):
    """N training examples."""

    images: Tensor  # [N,3,S,S] uint8 RGB, channels last in memory
    targets: Tensor  # [N,K] float32
    guidance: Tensor  # [N,7,7] float32, 0..1
    indices: Tensor  # [N] int64, position in the split


Example = tuple[Tensor, Tensor, Tensor, int]
"""What a batch is made of, of one image."""


class CropDataset(Dataset[Example]):
    """Crops of `split` in the input size of a network.

    Example `i` of epoch `e` depends on (seed, e, i) alone: not on the order, on the number of
    workers or on where a run was interrupted.
    """

    def __init__(
        self,
        split: Split,
        prepared: Prepared,
        size: int,
        *,
        guidance: NDArray[np.uint8] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        """`guidance` is [N,7,7] bits (None: zeros); `augmentation` None gives the plain crops."""
        self.split, self.size = split, size
        scale = np.array([[size / 112, 0, 0], [0, size / 112, 0]])
        self._matrices = [compose(scale, matrix) for matrix in prepared.matrices]
        self._guidance = guidance
        self._augmentation = augmentation
        self._seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Example:
        image = read_image(self.split.paths[index])
        matrix = self._matrices[index]
        grid = np.zeros((GRID, GRID), np.float32)
        if self._guidance is not None:
            grid = self._guidance[index].astype(np.float32)
        if self._augmentation is None:
            crop = warp_crop(image, matrix, self.size)
        else:
            rng = np.random.default_rng((self._seed, self.epoch, index))
            affine = sample_affine(self._augmentation, self.size, rng)
            if turn := sample_turn(self._augmentation, rng):
                origin = sources(turn, affine, self.size)
                crop = _taken_from(image, matrix, origin)
                grid = turn_grid(grid, origin)
            else:
                crop = warp_crop(image, compose(affine, matrix), self.size)
                grid = move_grid(grid, affine, self.size)
            crop = photometric(crop, self._augmentation, rng)
        pixels = torch.from_numpy(crop).permute(2, 0, 1)
        return pixels, torch.from_numpy(self.split.targets[index]), torch.from_numpy(grid), index


def _taken_from(image: UInt8, matrix: Float64, origin: Float32) -> UInt8:
    """The crop whose pixels lie at `origin` [S,S,2] in the aligned crop, or a little outside."""
    size = origin.shape[0]
    margin = size // 4
    wide = warp_crop(image, compose([[1, 0, margin], [0, 1, margin]], matrix), size + 2 * margin)
    x, y = np.moveaxis(origin + margin, -1, 0)
    crop = cv2.remap(wide, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def normalise(images: Tensor) -> Tensor:
    """uint8 [N,3,S,S] -> float32 as the backbones were trained: (x - 127.5) / 128."""
    return ((images.float() - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def mixed(batch: Batch) -> Batch:
    """Each image of a normalised batch blended with another one (mixup; Zhang et al., 2018).

    Its own share, 0.5 to 1, is that of its targets and guidance too.
    """
    count, device = len(batch.images), batch.images.device
    own = (0.5 + 0.5 * torch.rand(count)).to(device)
    other = torch.randperm(count).to(device)

    def blend(values: Tensor) -> Tensor:
        share = own.reshape(-1, *(1,) * (values.ndim - 1))
        return share * values + (1 - share) * values[other]

    images = blend(batch.images).contiguous(memory_format=torch.channels_last)
    return batch._replace(
        images=images, targets=blend(batch.targets), guidance=blend(batch.guidance)
    )


def class_weights(split: Split) -> NDArray[np.float64]:
    """[N] weights with which every class that occurs is drawn equally often.

    An image without a hard label counts as the class of its largest target.
    """
    classes = np.where(split.classes >= 0, split.classes, split.targets.argmax(1))
    return np.asarray(1 / np.bincount(classes)[classes], np.float64)


def collate(examples: list[Example]) -> Batch:
    """Examples -> a batch, its pixels copied in the order in which OpenCV left them.

    Stacking channels first would transpose every crop, and `normalise` transpose them back.
    """
    rows = [(pixels.permute(1, 2, 0), *rest) for pixels, *rest in examples]
    images, targets, guidance, indices = default_collate(rows)
    return Batch(images.permute(0, 3, 1, 2), targets, guidance, indices)


class _Share(Sampler[list[int]]):
    """A process's part of each batch."""

    def __init__(self, whole: BatchSampler, share: tuple[int, int]) -> None:
        self._whole, self._share = whole, share

    def __iter__(self) -> Iterator[list[int]]:
        rank, size = self._share
        return (batch[rank::size] for batch in self._whole)

    def __len__(self) -> int:
        return len(self._whole)


def batches(
    dataset: CropDataset,
    batch_size: int,
    *,
    shuffle: bool,
    balanced: bool = False,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One pass over `dataset`; shuffled, the order depends on its seed and epoch alone.

    Shuffled and `balanced`, as many images are drawn with replacement, each class as often.

    A shuffled pass drops the last, incomplete batch (batch statistics of two faces mean nothing)
    unless it is the only one.

    `share` (r, n) gives every n-th example of each batch, from the r-th on: the part of one of n
    processes. `batch_size` is that of all of them.
    """
    generator = torch.Generator().manual_seed(dataset._seed * 1_000_003 + dataset.epoch)
    sampler: Sampler[int] = SequentialSampler(dataset)
    if shuffle and balanced:
        weights = class_weights(dataset.split).tolist()
        sampler = WeightedRandomSampler(weights, len(dataset), generator=generator)
    elif shuffle:
        sampler = RandomSampler(dataset, generator=generator)
    drop_last = shuffle and len(dataset) > batch_size
    loader = DataLoader(
        dataset,
        batch_sampler=_Share(BatchSampler(sampler, batch_size, drop_last), share),
        generator=generator,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
    yield from loader
