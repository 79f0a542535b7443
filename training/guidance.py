"""Guidance maps (paper, section III-B): where in a face the features stand out, unsupervised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from training.crops import GRID, CropDataset, normalise
from training.progress import progress

Features = NDArray[np.float16]
# Images whose features are computed and written together: more outgrow a core's cache.
CHUNK = 16
# Larger features than this are kept in a file and clustered as they are read.
IN_MEMORY_BYTES = 4 * 2**30
STREAM_CHUNK, STREAM_PASSES = 8192, 2


@dataclass(frozen=True, eq=False)
class GuidanceMaps:
    """Guidance of N images on a G x G grid."""

    maps: NDArray[np.uint8]
    """[N,G,G], 1 where the image's feature is nearest to the attentive centre, else 0."""
    attentive: NDArray[np.float32]
    """[G,G,C] the centre of the attentive cluster at each position (the smallest, unless asked)."""
    ordinary: NDArray[np.float32]
    """[G,G,C] the centre at the other end (the largest)."""

    @property
    def attentive_share(self) -> NDArray[np.float64]:
        """[G,G] share of images whose bit is 1; of the smallest of two clusters, at most a half."""
        return np.asarray(self.maps.mean(0), np.float64)


def extract_features(
    backbone: Callable[[Tensor], Tensor], batches: Iterable[Tensor], steps: int | None
) -> Features:
    """Feature maps of all images, [N,G,G,C] float16 (half the memory; K-means needs no more).

    `backbone` is in evaluation mode; the `steps` batches are normalised images
    [n,3,S,S] float32 in order. `steps` None shows no progress.
    """
    parts = []
    shown = batches if steps is None else progress(batches, "features", steps, unit="batch")
    with torch.no_grad():
        for images in shown:
            feature_map = backbone(images)
            parts.append(feature_map.permute(0, 2, 3, 1).to(torch.float16).cpu().numpy())
    return np.concatenate(parts)


def store_features(
    backbone: Callable[[Tensor], Tensor], crops: CropDataset, path: Path, channels: int
) -> Features:
    """Feature maps of all crops in the file `path`, as a memory map [N,G,G,C] float16.

    Interrupted, it goes on with the next call.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npy")
        mode: Literal["r+", "w+"] = "r+" if temporary.is_file() else "w+"
        shape = (len(crops), GRID, GRID, channels)
        features = np.lib.format.open_memmap(temporary, mode, np.float16, shape)
        # No image gives a feature map of zeros alone: what is zero is not there yet.
        written = int(features.any((1, 2, 3)).sum())
        starts = range(written, len(crops), CHUNK)
        for start in progress(starts, "features", len(starts), unit="batch"):
            chosen = range(start, min(start + CHUNK, len(crops)))
            images = normalise(torch.stack([crops[i][0] for i in chosen]))
            features[start : start + len(chosen)] = extract_features(backbone, [images], None)
        features.flush()
        temporary.replace(path)
    stored: Features = np.load(path, mmap_mode="r")
    return stored


def compute_guidance(
    features: Features, *, clusters: int = 2, attentive: str = "smallest", seed: int = 0
) -> GuidanceMaps:
    """K-means over the feature vectors of each position; the smallest cluster is attentive.

    `features` is [N,G,G,C], in memory or a memory map. An image's bit is 1 where its vector is
    nearest (Euclidean) to the attentive centre (paper, equation 1). `attentive` "largest" turns
    the choice around.
    """
    count, rows, columns, channels = features.shape
    maps = np.zeros((count, rows, columns), np.uint8)
    centres_of = np.zeros((2, rows, columns, channels), np.float32)
    positions = [(row, column) for row in range(rows) for column in range(columns)]
    for row, column in progress(positions, "guidance", len(positions), unit="position"):
        vectors = features[:, row, column].astype(np.float32)
        nearest, centres = _cluster(vectors, clusters, seed)
        chosen = _by_size(nearest, clusters, attentive)
        maps[:, row, column] = nearest == chosen[0]
        centres_of[:, row, column] = centres[chosen[[0, -1]]]
    return GuidanceMaps(maps, *centres_of)


def compute_guidance_streamed(
    features: Features,
    *,
    clusters: int = 2,
    attentive: str = "smallest",
    seed: int = 0,
    chunk: int = STREAM_CHUNK,
) -> GuidanceMaps:
    """`compute_guidance` for a memory map that is larger than memory.

    The file is read forwards three times, `chunk` images at once: twice to find the centres, once
    to assign the images. On well separated clusters the maps are those of the full K-means; where
    clusters run into each other, a share of the bits is another.
    """
    count, rows, columns, channels = features.shape
    positions = [(row, column) for row in range(rows) for column in range(columns)]
    means = {at: MiniBatchKMeans(clusters, batch_size=chunk, random_state=seed) for at in positions}
    starts = [start for _ in range(STREAM_PASSES) for start in range(0, count, chunk)]
    for start in progress(starts, "centres", len(starts), unit="chunk"):
        part = np.asarray(features[start : start + chunk], np.float32)
        for row, column in positions:
            if len(part) >= clusters:
                means[row, column].partial_fit(part[:, row, column])
    nearest = np.zeros((count, rows, columns), np.uint8)
    for start in range(0, count, chunk):
        part = np.asarray(features[start : start + chunk], np.float32)
        for row, column in positions:
            vectors = np.ascontiguousarray(part[:, row, column])
            nearest[start : start + chunk, row, column] = means[row, column].predict(vectors)
    maps, centres_of = np.zeros_like(nearest), np.zeros((2, rows, columns, channels), np.float32)
    for row, column in positions:
        centres = np.asarray(means[row, column].cluster_centers_, np.float32)
        chosen = _by_size(nearest[:, row, column], clusters, attentive)
        maps[:, row, column] = nearest[:, row, column] == chosen[0]
        centres_of[:, row, column] = centres[chosen[[0, -1]]]
    return GuidanceMaps(maps, *centres_of)


def _by_size(nearest: NDArray[np.integer], clusters: int, attentive: str) -> NDArray[np.intp]:
    """Clusters, the attentive one first."""
    order = np.bincount(nearest, minlength=clusters).argsort(kind="stable")
    return order if attentive == "smallest" else order[::-1]


def _cluster(
    vectors: NDArray[np.float32], clusters: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Nearest cluster [N] and centres [clusters,C]."""
    kmeans = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=seed)
    # One thread: steps are so short that threads mostly wait for each other on a busy machine.
    with threadpool_limits(1):
        nearest = kmeans.fit_predict(vectors)
    return np.asarray(nearest, np.int64), np.asarray(kmeans.cluster_centers_, np.float32)


def cache_key(inputs: Mapping[str, object]) -> str:
    """Key of everything that guidance maps depend on: data, weights, preprocessing, clusters."""
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(network: nn.Module) -> str:
    """SHA-256 (hex) over the names and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_guidance(folder: Path, key: str) -> GuidanceMaps | None:
    """The maps stored under `key`, or None."""
    path = _cache_path(folder, key)
    if not path.is_file():
        return None
    with np.load(path) as stored:
        return GuidanceMaps(stored["maps"], stored["attentive"], stored["ordinary"])


def save_guidance(folder: Path, key: str, guidance: GuidanceMaps) -> None:
    """Store maps under `key`; a reader never sees half a file."""
    path = _cache_path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(
        temporary,
        maps=guidance.maps,
        attentive=guidance.attentive,
        ordinary=guidance.ordinary,
    )
    temporary.replace(path)


def _cache_path(folder: Path, key: str) -> Path:
    return folder / f"guidance-{key}.npz"
