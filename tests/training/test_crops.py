"""Crops of training: the service's own, augmented with their guidance maps, reproducible."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.expression import ExpressionModel
from service.faces.alignment import compose, warp_crop
from service.faces.detector import FaceDetector
from service.runtime import SessionSettings
from tests.training.made_up import (
    FacePictures,
    coloured_split,
    contract_for,
    enliven,
    fitted,
    write_png,
)
from training.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    move_grid,
    photometric,
    sample_affine,
)
from training.backbones import load_backbone
from training.config import TrainingConfig
from training.crops import Batch, CropDataset, batches, class_weights, mixed, normalise
from training.datasets.records import Split, hard_split
from training.export import export_onnx
from training.lan import Lan
from training.preparation import Prepared, prepare, read_image

FLIP_ALONE = dataclasses.replace(NO_AUGMENTATION, flip=1.0)
Grid = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ExpressionModel:
    """A LAN of the shipped kind with random weights, loaded by the service."""
    torch.manual_seed(0)
    network = enliven(Lan(load_backbone("mobilefacenet", None), 8))
    path = tmp_path_factory.mktemp("model") / "lan.onnx"
    export_onnx(network, contract_for(network, TrainingConfig()), path)
    return ExpressionModel.load(path, SessionSettings("cpu"))


def as_split(paths: tuple[Path, ...]) -> Split:
    count = len(paths)
    targets = np.eye(8, dtype=np.float32)[np.arange(count)]
    return Split(tuple("abcdefgh"), paths, targets, np.arange(count))


def pixels_of(dataset: CropDataset, index: int) -> NDArray[np.uint8]:
    return dataset[index][0].permute(1, 2, 0).numpy()


# --- training and service see the same ---------------------------------------------------------


def test_crops_equal_the_services_pixel_for_pixel(
    faces: FacePictures, detector: FaceDetector, model: ExpressionModel, tmp_path: Path
) -> None:
    prepared = prepare(faces.found, tmp_path / "store.jsonl", detector)
    dataset = CropDataset(as_split(faces.found), prepared, model.contract.input_size)
    for index, path in enumerate(faces.found):
        image = read_image(path)
        face = detector.detect(image)[0]
        stored = dataclasses.replace(face, landmarks=prepared.landmarks[index])
        np.testing.assert_array_equal(pixels_of(dataset, index), model.crop(image, stored))
        # Landmarks are stored to a thousandth of a pixel, which may round a value the other way.
        np.testing.assert_allclose(pixels_of(dataset, index), model.crop(image, face), atol=1)


def test_normalisation_is_the_contracts(model: ExpressionModel) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    served = model.batch([crop])
    trained = normalise(torch.from_numpy(crop).permute(2, 0, 1)[None]).numpy()
    np.testing.assert_allclose(trained, served, atol=1e-6)


def test_channels_are_rgb(model: ExpressionModel, faces: FacePictures) -> None:
    split = as_split(faces.found)
    dataset = CropDataset(split, fitted(4, 512), 112)
    photo = read_image(split.paths[0])
    np.testing.assert_allclose(pixels_of(dataset, 0).mean((0, 1)), photo.mean((0, 1)), atol=2.0)
    rgb = pixels_of(dataset, 0)
    straight, swapped = model.infer([rgb, np.ascontiguousarray(rgb[..., ::-1])])
    assert np.abs(straight.logits - swapped.logits).max() > 0.01


def test_larger_inputs_show_the_same_face(
    faces: FacePictures, detector: FaceDetector, tmp_path: Path
) -> None:
    prepared = prepare(faces.found, tmp_path / "store.jsonl", detector)
    small = CropDataset(as_split(faces.found), prepared, 112)
    large = CropDataset(as_split(faces.found), prepared, 224)
    crop = pixels_of(large, 0)
    assert crop.shape == (224, 224, 3)
    halved = cv2.resize(crop, (112, 112), interpolation=cv2.INTER_AREA)
    assert np.abs(halved.astype(int) - pixels_of(small, 0)).mean() < 8


# --- geometry moves the guidance map as it moves the pixels ------------------------------------


def random_bits(seed: int = 0) -> Grid:
    return np.random.default_rng(seed).integers(0, 2, (7, 7)).astype(np.float32)


@pytest.mark.parametrize("size", [112, 224, 28])
def test_a_flip_flips_the_map_exactly(size: int) -> None:
    affine = sample_affine(FLIP_ALONE, size, np.random.default_rng(0))
    for seed in range(20):
        bits = random_bits(seed)
        np.testing.assert_array_equal(move_grid(bits, affine, size), bits[:, ::-1])


def test_a_flipped_example_has_the_flipped_map_and_crop(tmp_path: Path) -> None:
    split, maps = coloured_split(tmp_path, 3), np.stack([random_bits(i) for i in range(3)])
    bits = maps.astype(np.uint8)
    plain = CropDataset(split, fitted(3), 28, guidance=bits)
    flipped = CropDataset(split, fitted(3), 28, guidance=bits, augmentation=FLIP_ALONE)
    for index in range(3):
        np.testing.assert_array_equal(pixels_of(flipped, index), pixels_of(plain, index)[:, ::-1])
        np.testing.assert_array_equal(flipped[index][2].numpy(), maps[index][:, ::-1])


@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("cell", [(0, 0), (3, 3), (2, 5), (6, 1)])
def test_no_augmentation_moves_nothing(size: int, cell: tuple[int, int]) -> None:
    affine = sample_affine(NO_AUGMENTATION, size, np.random.default_rng(0))
    np.testing.assert_allclose(affine, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    grid = np.zeros((7, 7), np.float32)
    grid[cell] = 1
    np.testing.assert_array_equal(move_grid(grid, affine, size), grid)


def centroid(mass: NDArray[np.float32]) -> NDArray[np.float64]:
    """(x, y) of the centre of mass, in cells or pixels."""
    ys, xs = np.indices(mass.shape)
    return np.array([np.average(xs, weights=mass), np.average(ys, weights=mass)], np.float64)


@pytest.mark.parametrize("seed", range(12))
def test_a_marked_cell_moves_as_a_marked_blob_of_pixels(seed: int) -> None:
    size, step = 112, 16
    rng = np.random.default_rng(seed)
    wild = Augmentation(flip=0.5, rotation_degrees=25, scale=0.15, shift=0.08)
    affine = sample_affine(wild, size, rng)
    row, column = rng.integers(2, 5, 2)
    grid = np.zeros((7, 7), np.float32)
    grid[row, column] = 1
    image = np.zeros((size, size, 3), np.uint8)
    image[row * step : (row + 1) * step, column * step : (column + 1) * step] = 255
    blob = warp_crop(image, affine, size)[..., 0].astype(np.float32)
    in_pixels = centroid(move_grid(grid, affine, size)) * step + (step - 1) / 2
    # Bilinear sampling of a single cell shifts its centre of mass by up to a few pixels.
    np.testing.assert_allclose(in_pixels, centroid(blob), atol=step / 4)


def test_a_shift_by_whole_cells_is_exact() -> None:
    bits = random_bits()
    affine = np.array([[1.0, 0, 32], [0, 1, -16]])
    moved = move_grid(bits, affine, 112)
    np.testing.assert_allclose(moved[:6, 2:], bits[1:, :5], atol=1e-6)


def test_moved_maps_stay_between_0_and_1() -> None:
    for seed in range(20):
        affine = sample_affine(Augmentation(), 112, np.random.default_rng(seed))
        moved = move_grid(random_bits(seed), affine, 112)
        assert moved.dtype == np.float32
        assert 0 <= moved.min() <= moved.max() <= 1


def test_geometry_stays_within_its_limits() -> None:
    limits = Augmentation()
    centre = np.array([55.5, 55.5, 1.0])
    flips = 0
    for seed in range(200):
        affine = sample_affine(limits, 112, np.random.default_rng(seed))
        assert np.abs(affine @ centre - 55.5).max() <= limits.shift * 112 + 1e-9
        singular = np.linalg.svd(affine[:, :2])[1]
        assert singular.min() >= (1 - limits.scale) * (1 - limits.scale / 2) - 1e-9
        assert singular.max() <= (1 + limits.scale) * (1 + limits.scale / 2) + 1e-9
        flips += np.linalg.det(affine[:, :2]) < 0
    assert 60 < flips < 140


# --- photometry --------------------------------------------------------------------------------


def test_photometry_gives_a_new_image_in_range() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    before = crop.copy()
    always = Augmentation(brightness=0.5, blur=1, erase=1, grey=1)
    for seed in range(10):
        changed = photometric(crop, always, np.random.default_rng(seed))
        assert changed.shape == crop.shape
        assert changed.dtype == np.uint8
        assert (changed != crop).any()
    np.testing.assert_array_equal(crop, before)


def test_no_augmentation_changes_no_pixel() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    same = photometric(crop, NO_AUGMENTATION, np.random.default_rng(0))
    np.testing.assert_array_equal(same, crop)


def test_grey_has_three_equal_channels() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    grey_alone = dataclasses.replace(NO_AUGMENTATION, grey=1.0)
    grey = photometric(crop, grey_alone, np.random.default_rng(0))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_erasing_paints_one_grey_rectangle() -> None:
    crop = np.full((112, 112, 3), (255, 0, 128), np.uint8)
    erase_alone = dataclasses.replace(NO_AUGMENTATION, erase=1.0)
    erased = photometric(crop, erase_alone, np.random.default_rng(1))
    changed = (erased != crop).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    rectangle = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert changed.sum() == rectangle.shape[0] * rectangle.shape[1]
    assert len(np.unique(rectangle)) == 1
    assert max(rectangle.shape[:2]) <= 112 // 3


# --- reproducibility ---------------------------------------------------------------------------


def augmented(folder: Path, *, seed: int = 0, epoch: int = 0) -> CropDataset:
    bits = np.stack([random_bits(i) for i in range(8)]).astype(np.uint8)
    dataset = CropDataset(
        coloured_split(folder, 8),
        fitted(8),
        28,
        guidance=bits,
        augmentation=Augmentation(),
        seed=seed,
    )
    dataset.epoch = epoch
    return dataset


def assert_same_example(first: CropDataset, second: CropDataset, index: int) -> None:
    for one, other in zip(first[index], second[index], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_an_example_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    first, second = augmented(tmp_path, seed=3, epoch=2), augmented(tmp_path, seed=3, epoch=2)
    for index in (5, 0, 7):
        second[index]  # asked for in another order, and twice
    torch.manual_seed(99)
    np.random.default_rng(99).random()
    for index in range(8):
        assert_same_example(first, second, index)


def test_another_seed_epoch_or_index_gives_another_example(tmp_path: Path) -> None:
    base = augmented(tmp_path)[0][0]
    assert not torch.equal(augmented(tmp_path, seed=1)[0][0], base)
    assert not torch.equal(augmented(tmp_path, epoch=1)[0][0], base)
    same_image = augmented(tmp_path)
    paths = (same_image.split.paths[0],) * 8
    same_image.split = dataclasses.replace(same_image.split, paths=paths)
    assert not torch.equal(same_image[1][0], base)


def order(dataset: CropDataset) -> list[int]:
    passes = batches(dataset, 3, shuffle=True)
    return [int(i) for batch in passes for i in batch.indices]


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    first = order(augmented(tmp_path, seed=3, epoch=1))
    torch.manual_seed(99)
    assert order(augmented(tmp_path, seed=3, epoch=1)) == first
    assert order(augmented(tmp_path, seed=3, epoch=2)) != first
    assert order(augmented(tmp_path, seed=4, epoch=1)) != first


def test_a_pass_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    order(augmented(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_hold_what_belongs_together(tmp_path: Path) -> None:
    dataset = augmented(tmp_path)
    for batch in batches(dataset, 3, shuffle=True):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (3, 3, 28, 28)
        assert batch.guidance.shape == (3, 7, 7)
        for place, index in enumerate(batch.indices.tolist()):
            image, target, guidance, _ = dataset[index]
            assert torch.equal(batch.images[place], image)
            assert torch.equal(batch.targets[place], target)
            assert torch.equal(batch.guidance[place], guidance)


def test_a_batch_needs_no_transposing_before_the_network(tmp_path: Path) -> None:
    images = next(batches(augmented(tmp_path), 3, shuffle=False)).images
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalise(images), normalise(images.contiguous()))


def test_only_a_shuffled_pass_drops_what_is_left_over(tmp_path: Path) -> None:
    dataset = augmented(tmp_path)
    assert [len(b.images) for b in batches(dataset, 3, shuffle=True)] == [3, 3]
    assert [len(b.images) for b in batches(dataset, 3, shuffle=False)] == [3, 3, 2]
    assert [len(b.images) for b in batches(dataset, 16, shuffle=True)] == [8]
    plain = [i for b in batches(dataset, 3, shuffle=False) for i in b.indices.tolist()]
    assert plain == list(range(8))


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    dataset = augmented(tmp_path)
    alone = list(batches(dataset, 4, shuffle=True))
    helped = list(batches(dataset, 4, shuffle=True, workers=1))
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_augmentation_composes_with_alignment(tmp_path: Path) -> None:
    """Warped once, not twice: no loss of sharpness, and no border where the image goes on."""
    split = coloured_split(tmp_path, 1, side=112)
    tight = np.array([[[2.0, 0, -56], [0, 2, -56]]])
    prepared = Prepared(("found",), np.zeros((1, 5, 2), np.float32), tight)
    turn = dataclasses.replace(NO_AUGMENTATION, rotation_degrees=20.0, shift=0.1)
    dataset = CropDataset(split, prepared, 112, augmentation=turn, seed=1)
    affine = sample_affine(turn, 112, np.random.default_rng((1, 0, 0)))
    image = read_image(split.paths[0])
    expected = warp_crop(image, compose(affine, tight[0]), 112)
    np.testing.assert_array_equal(pixels_of(dataset, 0), expected)


# --- balanced sampling -------------------------------------------------------------------------


def uneven(folder: Path) -> CropDataset:
    """24 images: 20 of the first class, 4 of the second, one of them known by its votes alone."""
    paths = [write_png(folder / f"{i}.png", np.full((28, 28), i)) for i in range(24)]
    split = hard_split(("common", "rare"), paths, [0] * 20 + [1] * 4)
    split.classes[-1] = -1
    return CropDataset(split, fitted(24), 28, seed=3)


def drawn(dataset: CropDataset) -> list[int]:
    passes = batches(dataset, 4, shuffle=True, balanced=True)
    return [index for batch in passes for index in batch.indices.tolist()]


def test_balanced_sampling_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    dataset = uneven(tmp_path)
    first = drawn(dataset)
    torch.manual_seed(99)
    assert drawn(dataset) == first
    assert len(first) == len(dataset)
    dataset.epoch = 1
    assert drawn(dataset) != first


def test_balanced_sampling_draws_each_class_as_often(tmp_path: Path) -> None:
    dataset = uneven(tmp_path)
    weights = class_weights(dataset.split)
    assert weights[:20].sum() == pytest.approx(weights[20:].sum())
    rare = 0
    for dataset.epoch in range(20):
        rare += sum(index >= 20 for index in drawn(dataset))
    assert 0.4 < rare / (20 * 24) < 0.6, "one in six without it"


def test_what_is_not_shuffled_is_not_balanced(tmp_path: Path) -> None:
    passes = batches(uneven(tmp_path), 24, shuffle=False, balanced=True)
    assert next(passes).indices.tolist() == list(range(24))


def test_a_mixed_batch_keeps_more_than_half_of_each_image() -> None:
    torch.manual_seed(0)
    count = 16
    images = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1).expand(count, 3, 8, 8)
    targets = torch.eye(count)
    guidance = targets[:, :, None].expand(count, count, 7)
    batch = mixed(Batch(images, targets, guidance, torch.arange(count)))
    shares = batch.targets.diagonal()
    assert bool(((shares >= 0.5) & (shares <= 1)).all())
    assert len(set(shares.tolist())) > count // 2
    # Pixels, targets and guidance are blended alike, and add up as before.
    assert torch.allclose(batch.targets.sum(1), torch.ones(count))
    assert torch.allclose(batch.images[:, 0, 0, 0], batch.targets @ images[:, 0, 0, 0])
    assert torch.allclose(batch.guidance[..., 0], batch.targets)
