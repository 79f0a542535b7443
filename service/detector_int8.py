"""The face detector in 8-bit integers, for CPUs with VNNI: ``python -m service.detector_int8``.

What it is made of is the float32 network in ``models/`` and the ranges of its activations, which
`python -m training detector-ranges` has measured once. Needs the package ``onnx``, which serving
itself does not.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import int8_description
from service.detector_graph import simplify
from service.detector_weights import OUTPUT as NETWORK
from service.detector_weights import SOURCE
from service.errors import ModelFileError
from service.precision import INT8_SUFFIX

RANGES = Path(__file__).with_name("detector_ranges.json")
# Of the network's parts, those in 8 bits: half of its time. With the backbone too, a look takes a
# tenth less, but pictures without a face give two thirds more false finds.
PARTS = ("/fpn/", "/ssh1/conv3X3", "/ssh1/conv5X5_1", "/ssh2/conv3X3")
OPERATIONS = ("Conv", "LeakyRelu", "Relu", "Add")
# 8-bit weights with a scale for each channel came with it.
OPSET = 13


def quantise_detector(
    network: Path,
    output: Path,
    *,
    ranges: Path = RANGES,
    canvases: Iterable[NDArray[np.float32]] | None = None,
) -> None:
    """Write `output`, the network in the file `network` with its widest convolutions in 8 bits.

    Ranges of activations are read from the file `ranges`; where there are `canvases`, each
    [1,3,H,W] float32 as the network takes them, they are measured on those and written to it, once
    everything has gone well. Raises ModelFileError where a file cannot be read or written, the
    package onnx is missing, or `network` is another than the shipped one.
    """
    try:
        _quantise(network, output, ranges, canvases)
    except OSError as error:
        raise ModelFileError(f"{output}: cannot be made ({error})") from error


def _quantise(
    network: Path,
    output: Path,
    ranges: Path,
    canvases: Iterable[NDArray[np.float32]] | None,
) -> None:
    try:
        import onnx
        from onnxruntime.quantization import (
            QuantFormat,
            QuantType,
            quant_pre_process,
            quantize_static,
        )
    except ImportError as error:
        raise ModelFileError(f"{output}: to make it, `pip install onnx` ({error})") from error
    content = network.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if canvases is None and digest != SOURCE.onnx_sha256:
        raise ModelFileError(f"{network}: is not the network that {ranges.name} was measured on")
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError has no public name
        raise ModelFileError(f"{network}: cannot be read as ONNX ({error})") from error
    converted = onnx.version_converter.convert_version(model, OPSET)
    try:
        simplify(converted)
    except KeyError as error:
        other = f"{network}: is no RetinaFace (MobileNet 0.25) as it is shipped"
        raise ModelFileError(other) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=output.parent) as folder:
        simple, prepared, written = (
            Path(folder) / name for name in ("simple.onnx", "prepared.onnx", "int8.onnx")
        )
        cache = Path(folder) / "ranges.json"  # where it is there, it is read and not measured
        if canvases is None:
            cache.write_bytes(ranges.read_bytes())
        onnx.save(converted, simple)
        quant_pre_process(simple, prepared, skip_symbolic_shape=True)
        names = [node.name for node in onnx.load(prepared).graph.node]
        quantize_static(
            prepared,
            written,
            None if canvases is None else _Feed(canvases),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATIONS),
            nodes_to_exclude=[name for name in names if not name.startswith(PARTS)],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_cache_path=cache,
        )
        made = onnx.load(written)
        made.doc_string = int8_description(digest)
        onnx.save(made, written)
        written.chmod(0o644)
        if canvases is not None:
            ranges.write_bytes(cache.read_bytes())
        written.replace(output)


class _Feed:
    """Hands canvases to the calibration."""

    def __init__(self, canvases: Iterable[NDArray[np.float32]]) -> None:
        self._canvases = iter(canvases)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next one by the input's name, None at the end."""
        canvas = next(self._canvases, None)
        return None if canvas is None else {"input": canvas}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service.detector_int8",
        description="Make the face detector's 8-bit file, which CPUs with VNNI run faster.",
    )
    parser.add_argument("--network", type=Path, default=NETWORK, help="float32 file [%(default)s]")
    text = "file to write [that name, ending in .int8.onnx, where the service looks for it]"
    parser.add_argument("--output", type=Path, help=text)
    options = parser.parse_args(arguments)
    output = options.output or options.network.with_suffix(INT8_SUFFIX)
    try:
        quantise_detector(options.network, output)
    except ModelFileError as error:
        print(f"detector in 8 bits: {error}", file=sys.stderr)
        return 1
    print(f"{output}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
