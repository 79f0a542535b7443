"""Guidance maps: planted clusters come back, and no changed input meets a stale cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from tests.training.made_up import ROOT, clouds, coloured_split, enliven, fitted, tiny_lan
from training.config import TrainingConfig
from training.crops import CropDataset, normalise
from training.guidance import (
    GuidanceMaps,
    cache_key,
    compute_guidance,
    compute_guidance_streamed,
    extract_features,
    load_guidance,
    save_guidance,
    store_features,
    weights_digest,
)
from training.lan import Lan
from training.pipeline import PreparedSplit, RunPaths, guidance_for
from training.preparation import PIPELINE_VERSION

COUNT, GRID, CHANNELS = 300, 7, 6


def planted(shares: tuple[float, ...]) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Features [N,7,7,C] around distant centres, another draw at each position: (features, which).

    Cluster k holds exactly `shares[k]` of the images at every position.
    """
    rng = np.random.default_rng(0)
    sizes = [round(share * COUNT) for share in shares]
    members = np.repeat(np.arange(len(sizes)), sizes)
    which = np.stack([rng.permutation(members) for _ in range(GRID * GRID)], 1)
    which = which.reshape(COUNT, GRID, GRID)
    centres = rng.normal(0, 4, (GRID, GRID, len(shares), CHANNELS))
    rows, columns = np.indices((GRID, GRID))
    features = centres[rows, columns, which] + rng.normal(0, 0.2, (*which.shape, CHANNELS))
    return features.astype(np.float16), which


# --- clusters ----------------------------------------------------------------------------------


def test_recovers_the_planted_minority_at_each_position() -> None:
    features, which = planted((0.8, 0.2))
    guidance = compute_guidance(features)
    assert guidance.maps.dtype == np.uint8
    np.testing.assert_array_equal(guidance.maps, which)
    np.testing.assert_allclose(guidance.attentive_share, 0.2)
    in_minority = np.where(which[..., None] == 1, features, 0).astype(np.float64)
    np.testing.assert_allclose(guidance.attentive, in_minority.sum(0) / 60, atol=0.1)
    in_majority = np.where(which[..., None] == 0, features, 0).astype(np.float64)
    np.testing.assert_allclose(guidance.ordinary, in_majority.sum(0) / 240, atol=0.1)


def test_which_cluster_comes_first_does_not_matter() -> None:
    features, which = planted((0.2, 0.8))
    np.testing.assert_array_equal(compute_guidance(features).maps, which == 0)


def test_bits_are_nearest_to_the_attentive_centre() -> None:
    features = np.random.default_rng(1).normal(size=(COUNT, GRID, GRID, 3)).astype(np.float16)
    guidance = compute_guidance(features)
    wide = features.astype(np.float32)
    to_attentive = np.linalg.norm(wide - guidance.attentive, axis=-1)
    to_ordinary = np.linalg.norm(wide - guidance.ordinary, axis=-1)
    assert (guidance.maps == (to_attentive < to_ordinary)).mean() > 0.99
    assert guidance.attentive_share.max() <= 0.5


def test_of_three_clusters_the_smallest_is_attentive() -> None:
    features, which = planted((0.5, 0.15, 0.35))
    guidance = compute_guidance(features, clusters=3)
    np.testing.assert_array_equal(guidance.maps, which == 1)


def test_the_largest_cluster_can_be_attentive() -> None:
    features, which = planted((0.5, 0.15, 0.35))
    guidance = compute_guidance(features, clusters=3, attentive="largest")
    np.testing.assert_array_equal(guidance.maps, which == 0)


def streamed(features: NDArray[np.float16], tmp_path: Path, clusters: int = 2) -> GuidanceMaps:
    """Clustered as they are read from a file, 64 images at once."""
    np.save(tmp_path / "features.npy", features)
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    return compute_guidance_streamed(stored, chunk=64, clusters=clusters)


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.5, 0.15, 0.35)])
def test_streamed_clusters_are_the_planted_ones(shares: tuple[float, ...], tmp_path: Path) -> None:
    features, which = planted(shares)
    # In a file that is sorted by cluster, the first chunk would show one alone.
    guidance = streamed(features, tmp_path, clusters=len(shares))
    agreement = (guidance.maps == (which == np.argmin(shares))).mean()
    assert agreement > 0.98


def test_streamed_clusters_stay_within_a_distance_of_the_full_ones(tmp_path: Path) -> None:
    # Two clusters that overlap: a tenth of the images lies nearer to the other's centre.
    rng = np.random.default_rng(3)
    which = rng.random((2000, 7, 7)) < 0.3
    features = rng.normal(0, 1, (2000, 7, 7, 4)) + which[..., None] * 1.3
    stored = features.astype(np.float16)
    differing = streamed(stored, tmp_path).maps != full_k_means(stored)
    assert differing.mean() < 0.05


def full_k_means(features: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Bits by Lloyd's algorithm on all images at once."""
    bits = np.zeros(features.shape[:3], dtype=bool)
    for row, column in np.ndindex(*features.shape[1:3]):
        vectors = features[:, row, column].astype(np.float32)
        nearest = KMeans(2, n_init=5, random_state=0).fit_predict(vectors)
        bits[:, row, column] = nearest == np.bincount(nearest).argmin()
    return bits


def test_features_in_a_file_are_those_in_memory_and_go_on_where_they_stopped(
    tmp_path: Path,
) -> None:
    crops = CropDataset(coloured_split(tmp_path / "images", 40), fitted(40), 28)
    network = enliven(tiny_lan())
    images = [normalise(torch.stack([crops[i][0] for i in range(40)]))]
    expected = extract_features(network.backbone, images, 1)
    calls = 0

    def interrupted(batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        features: torch.Tensor = network.backbone(batch)
        return features

    path = tmp_path / "features.npy"
    with pytest.raises(KeyboardInterrupt):
        store_features(interrupted, crops, path, 8)
    assert not path.exists()
    stored = store_features(interrupted, crops, path, 8)
    assert calls == 4, "two batches of 16 were kept; the third had 8 images"
    np.testing.assert_allclose(stored, expected, rtol=1e-2, atol=1e-2)
    assert [p.name for p in tmp_path.glob("*.npy")] == ["features.npy"]


def test_the_same_features_give_the_same_maps() -> None:
    features = np.random.default_rng(1).normal(size=(60, GRID, GRID, 3)).astype(np.float16)
    np.testing.assert_array_equal(compute_guidance(features).maps, compute_guidance(features).maps)


def test_features_are_the_backbones_channels_last() -> None:
    network = enliven(tiny_lan())
    parts = [clouds(3, 28, seed) for seed in (1, 2)]
    features = extract_features(network.backbone, parts, 2)
    assert features.dtype == np.float16
    assert features.shape == (6, 7, 7, 8)
    with torch.no_grad():
        expected = torch.cat([network.backbone(part) for part in parts]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-3)


# --- the cache ---------------------------------------------------------------------------------


def some_maps() -> GuidanceMaps:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 7, 7, 8)).astype(np.float32)
    return GuidanceMaps(rng.integers(0, 2, (5, 7, 7), np.uint8), centres[0], centres[1])


def test_round_trip(tmp_path: Path) -> None:
    stored = some_maps()
    folder = tmp_path / "cache"
    assert load_guidance(folder, "key") is None
    save_guidance(folder, "key", stored)
    loaded = load_guidance(folder, "key")
    assert loaded is not None
    for name in ("maps", "attentive", "ordinary"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(stored, name))
        assert getattr(loaded, name).dtype == getattr(stored, name).dtype
    assert load_guidance(folder, "another") is None
    assert [p.name for p in folder.iterdir()] == ["guidance-key.npz"]


def test_a_key_does_not_depend_on_the_order_of_its_parts() -> None:
    assert cache_key({"a": 1, "b": [2]}) == cache_key({"b": [2], "a": 1})
    assert cache_key({"a": 1}) != cache_key({"a": 2})


def test_weights_digest_sees_parameters_buffers_and_nothing_else() -> None:
    network = tiny_lan()
    digest = weights_digest(network)
    assert weights_digest(tiny_lan()) == digest
    assert weights_digest(tiny_lan().to(memory_format=torch.channels_last)) == digest
    assert weights_digest(tiny_lan(seed=1)) != digest
    statistics = network.get_buffer("backbone.bn.running_mean")
    statistics[0] += 1e-6
    assert weights_digest(network) != digest


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What guidance maps are made of."""

    prepared: PreparedSplit
    network: Lan
    config: TrainingConfig


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    split = coloured_split(tmp_path / "data", 24)
    return Inputs(PreparedSplit(split, fitted(24)), enliven(tiny_lan()), TrainingConfig())


def run_paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path, None, ROOT / "none", tmp_path / "cache", tmp_path / "run")


def guide(inputs: Inputs, paths: RunPaths) -> GuidanceMaps:
    return guidance_for(inputs.prepared, inputs.network, inputs.config, paths)


def test_unchanged_inputs_meet_the_cache(inputs: Inputs, tmp_path: Path) -> None:
    paths = run_paths(tmp_path)
    first = guide(inputs, paths)
    assert first.maps.shape == (24, 7, 7)
    (file,) = paths.cache.iterdir()
    np.testing.assert_array_equal(guide(inputs, paths).maps, first.maps)
    # Answered from the file: what is put there is what comes back.
    marked = dataclasses.replace(first, maps=1 - first.maps)
    save_guidance(paths.cache, file.stem.removeprefix("guidance-"), marked)
    np.testing.assert_array_equal(guide(inputs, paths).maps, marked.maps)


def other_pixels(inputs: Inputs) -> Inputs:
    paths = inputs.prepared.split.paths
    paths[5].write_bytes(paths[6].read_bytes())
    return inputs


def other_images(inputs: Inputs) -> Inputs:
    kept = np.arange(24) != 3
    prepared = PreparedSplit(inputs.prepared.split.subset(kept), inputs.prepared.faces.subset(kept))
    return dataclasses.replace(inputs, prepared=prepared)


def other_weights(inputs: Inputs) -> Inputs:
    inputs.network.backbone.get_parameter("conv.weight").data[0] += 0.01
    return inputs


def other_statistics(inputs: Inputs) -> Inputs:
    inputs.network.backbone.get_buffer("bn.running_var")[0] *= 1.01
    return inputs


def other_landmarks(inputs: Inputs) -> Inputs:
    matrices = inputs.prepared.faces.matrices.copy()
    matrices[7, 0, 2] += 0.5
    faces = dataclasses.replace(inputs.prepared.faces, matrices=matrices)
    return dataclasses.replace(inputs, prepared=PreparedSplit(inputs.prepared.split, faces))


def other_clusters(inputs: Inputs) -> Inputs:
    return dataclasses.replace(inputs, config=dataclasses.replace(inputs.config, clusters=3))


@pytest.mark.parametrize(
    "change",
    [
        other_pixels,
        other_images,
        other_weights,
        other_statistics,
        other_landmarks,
        other_clusters,
    ],
)
def test_a_changed_input_never_meets_a_stale_cache(
    inputs: Inputs, tmp_path: Path, change: Callable[[Inputs], Inputs]
) -> None:
    paths = run_paths(tmp_path)
    guide(inputs, paths)
    before = set(paths.cache.iterdir())
    changed = change(inputs)
    fresh = guide(changed, paths)
    assert len(set(paths.cache.iterdir()) - before) == 1
    assert len(fresh.maps) == len(changed.prepared.split)


def test_another_preprocessing_never_meets_a_stale_cache(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = run_paths(tmp_path)
    guide(inputs, paths)
    monkeypatch.setattr("training.pipeline.PIPELINE_VERSION", PIPELINE_VERSION + 1)
    guide(inputs, paths)
    assert len(list(paths.cache.iterdir())) == 2


def test_choices_that_guidance_does_not_depend_on_share_it(inputs: Inputs, tmp_path: Path) -> None:
    paths = run_paths(tmp_path)
    guide(inputs, paths)
    config = dataclasses.replace(inputs.config, epochs=3, fusion="concat", seed=5)
    guide(dataclasses.replace(inputs, config=config), paths)
    assert len(list(paths.cache.iterdir())) == 1


def test_guidance_draws_nothing_from_the_global_generator(inputs: Inputs, tmp_path: Path) -> None:
    """Else a run that finds its maps in the cache would differ from the one that made them."""
    before = torch.get_rng_state()
    guide(inputs, run_paths(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
