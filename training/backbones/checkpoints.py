"""Loading published backbone weights by their key names."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

# What torch's unpickler raises on bytes of another kind; it promises no shorter list.
UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    struct.error,
)


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


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors by name of a torch checkpoint, without a prefix `module.`.

    `torch.save` of a dict with `state_dict`, or of the state dict itself. Nothing in it is run.
    Raises CheckpointError for anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file (backbone weights, torch checkpoint)")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNPICKLING_ERRORS as error:
        raise CheckpointError(f"{path}: not a torch checkpoint of plain tensors") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(loaded).__name__}, expected a state dict")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path}: expected a state dict, tensors by name")
    return {name.removeprefix("module."): value for name, value in state.items()}
