"""Loading published backbone weights by their key names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn


class CheckpointError(Exception):
    """A weights file is missing, of another layout, or does not fit the network."""


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load `state` into `network`; every key must match.

    BatchNorm's `num_batches_tracked` may be absent (older and foreign files leave it out).
    Raises CheckpointError naming the first keys that are missing, unknown or of another shape.
    """
    own = network.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - counters)
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    ]
    problems = [
        f"{what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", unknown), ("shape", sorted(shapes)))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path}: does not fit {type(network).__name__} ({'; '.join(problems)})"
        )
    network.load_state_dict(dict(state), strict=False)
