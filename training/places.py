"""Where a command may write: asked before the work, not after it."""

from __future__ import annotations

from pathlib import Path

MODEL_SUFFIX = ".onnx"


class PlaceError(Exception):
    """Nothing can, or may, be written where it was asked for; the message says why."""


def require_folder(path: Path) -> None:
    """Raise PlaceError where `path` is no folder and cannot become one."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise PlaceError(f"{path}: {place} is a file; expected a folder")


def exported_files(model: Path) -> tuple[Path, ...]:
    """What `export` writes: the model, its card and the card's picture."""
    return model, model.with_suffix(".md"), model.with_suffix(".png")


def require_places(model: Path, *others: Path, overwrite: bool) -> None:
    """Raise PlaceError where `model` is no ONNX file's name, or one of them may not be written."""
    if model.suffix != MODEL_SUFFIX:
        raise PlaceError(f"{model}: expected a name that ends in .onnx, such as models/smile.onnx")
    require_folder(model.parent)
    there = [path for path in (model, *others) if path.exists()]
    if there and not overwrite:
        raise PlaceError(f"{there[0]} exists; replace it with --overwrite, or name another file")
