"""Which of a network's two files runs: the float32 one, or beside it the one in 8-bit integers."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contract import int8_description
from service.errors import ModelFileError, StartupError
from service.expression import ExpressionModel
from service.faces.detector import FaceDetector
from service.runtime import Precision, SessionSettings, read_model, runs_on_cpu

CPUINFO = Path("/proc/cpuinfo")
INT8_SUFFIX = ".int8.onnx"
# Without one of these, 8-bit convolutions take as long as those in float32.
VNNI = frozenset({"avx512_vnni", "avx_vnni"})

logger = logging.getLogger(__name__)


def has_vnni(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo is that of an x86 CPU with 8-bit dot products."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return any(name.strip() == "flags" and VNNI & set(flags.split()) for name, _, flags in lines)


def chosen_file(model_path: Path, precision: Precision, *, gains: bool) -> Path:
    """The file to run for `model_path`; `gains`: whether int8 is the faster one here.

    Raises ModelFileError where int8 was asked for and its file is missing.
    """
    named = bool(model_path.name)  # not `/`, nor empty: that is no file, as reading it will tell
    if not named or precision == "float32" or model_path.name.endswith(INT8_SUFFIX):
        return model_path
    int8 = model_path.with_suffix(INT8_SUFFIX)
    if os.path.isfile(int8):  # noqa: PTH113 - that of Path raises for a name too long
        return int8 if precision == "int8" or gains else model_path
    if precision == "int8":
        raise ModelFileError(
            f"{int8}: no such file, and precision int8 runs it; {_mend(model_path)}"
        )
    return model_path


def load_detector(path: Path, precision: Precision, settings: SessionSettings) -> FaceDetector:
    """The face detector, in 8 bits where such a file is beside it and gains time, or was asked for.

    Raises a StartupError.
    """
    asked = precision == "int8"
    # Not every detector has a file in 8 bits: without one it runs in float32, asked for or not.
    file = chosen_file(path, "auto" if asked else precision, gains=asked or _gains(settings))
    if asked and not file.name.endswith(INT8_SUFFIX):
        logger.warning("%s: has no file in 8 bits beside it, and runs in float32", path)
    with _naming(path, file):
        detector = FaceDetector.load(file, settings)
    if file == path or detector.description == int8_description(_sha256(path)):
        return detector
    logger.warning("%s: was made from another file than %s, which runs", file, path.name)
    return FaceDetector.load(path, settings)


def load_expression(
    model_path: Path, precision: Precision, settings: SessionSettings
) -> ExpressionModel:
    """The expression network in the precision that was chosen.

    An int8 file of another model than the one in `model_path` is never run: a model trained anew
    may have its predecessor's beside it. Raises a StartupError.
    """
    file = chosen_file(model_path, precision, gains=_gains(settings))
    with _naming(model_path, file):
        model = ExpressionModel.load(file, settings)
    if file == model_path or model.description == int8_description(_sha256(model_path)):
        return model
    line = f"{file}: was made from another file than {model_path.name}"
    if precision == "int8":
        raise ModelFileError(f"{line}; {_mend(model_path)}")
    logger.warning("%s, which runs in its place", line)
    return ExpressionModel.load(model_path, settings)


@contextmanager
def _naming(asked: Path, file: Path) -> Iterator[None]:
    """A file that nobody asked for by name is said to be why it runs, where something is wrong."""
    try:
        yield
    except StartupError as error:
        if file == asked:
            raise
        raise type(error)(f"{error.detail} (it runs in place of {asked.name})") from error


def _gains(settings: SessionSettings) -> bool:
    return runs_on_cpu(settings.provider) and has_vnni(_cpuinfo())


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_model(path)).hexdigest()


def _mend(model_path: Path) -> str:
    int8 = model_path.with_suffix(INT8_SUFFIX)
    command = f"python -m training quantise --data DATA --model {model_path} --output {int8}"
    return f"make it with `{command}`, or take precision auto or float32"


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(errors="replace")
    except OSError:  # no Linux
        return ""
