"""Guidance maps (paper, section III-B): where in a face the features stand out, unsupervised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from training.progress import progress

Features = NDArray[np.float16]


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
        """[G,G] share of images whose bit is 1; at most about a half by construction."""
        return np.asarray(self.maps.mean(0), np.float64)


def extract_features(
    backbone: Callable[[Tensor], Tensor], batches: Iterable[Tensor], steps: int
) -> Features:
    """Feature maps of all images, [N,G,G,C] float16 (half the memory; K-means needs no more).

    `backbone` is in evaluation mode; the `steps` batches are normalised images
    [n,3,S,S] float32 in order.
    """
    parts = []
    with torch.no_grad():
        for images in progress(batches, "features", steps, unit="batch"):
            feature_map = backbone(images)
            parts.append(feature_map.permute(0, 2, 3, 1).to(torch.float16).cpu().numpy())
    return np.concatenate(parts)


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
        order = np.bincount(nearest, minlength=clusters).argsort(kind="stable")
        chosen = order if attentive == "smallest" else order[::-1]
        maps[:, row, column] = nearest == chosen[0]
        centres_of[:, row, column] = centres[chosen[[0, -1]]]
    return GuidanceMaps(maps, *centres_of)


def _cluster(
    vectors: NDArray[np.float32], clusters: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Nearest cluster [N] and centres [clusters,C]."""
    kmeans = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=seed)
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
