"""Millions of photos: the recognizer as an actor of Ray Data, paths in, Parquet out.

On one machine it uses every core; where `RAY_ADDRESS` names a cluster, every machine of it, which
must see the same folders or buckets. Needs the extra `bulk`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2

from service.buckets import locate, read_photo_file
from service.errors import BulkError, ImageFileError, OutputError, RequestError, ServiceError
from service.files import read_file
from service.local import Recognizer
from service.parquet import rows_with, schema_of
from service.printable import as_text
from service.schemas import PredictReply
from service.sources import is_address
from service.tables import Row, columns, rows

# Read when the library is loaded: without it, Ray reports its use to its makers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import pyarrow as pa
    import ray
    import ray.data
    import ray.exceptions
except ImportError as error:
    raise OutputError("bulk needs Ray; in a checkout: pip install -e '.[bulk]'.") from error

ERROR = "error"
# Arrow takes names of files, which need not be UTF-8, as bytes.
NAMES = ("utf-8", "surrogateescape")
MAX_BLOCK_PHOTOS = 1000  # one file of the output; what a lost worker has to read again
BATCH_PHOTOS = 32  # files of a worker in memory at a time
READERS = 8  # threads of a worker
BLOCKS_PER_WORKER = 4  # at least, so that all end at about the same time


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """What to read, and with what."""

    sources: Sequence[str]
    """Absolute paths, or addresses (service.buckets)."""
    output: str
    """A folder for Parquet files: its path or address."""
    settings: Mapping[str, str]
    """For Recognizer.load, in each worker."""
    workers: int | None
    """Actors; None: one a CPU of the cluster."""
    gpus_per_worker: float


def bulk_columns(labels: Sequence[str]) -> dict[str, type]:
    """Those of service.tables, and `error`: why a photo could not be read, else empty."""
    return columns(labels) | {ERROR: str}


class PhotoReader:
    """Reads batches of paths; Ray makes one in each worker and keeps it."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        # Ray gives a worker one CPU unless told otherwise.
        cv2.setNumThreads(1)
        self._recognizer = Recognizer.load(
            **{"image_workers": "1", "inference_workers": "1"} | dict(settings)
        )
        # Reading from a bucket is waiting.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._schema = schema_of(bulk_columns(self._recognizer.networks.classifier.contract.labels))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """[N] names in the column `source` to one row a face."""
        sources = [str(name, *NAMES) for name in batch.column("source").to_pylist()]
        files = list(self._readers.map(self._read, sources))
        whole = [file for file in files if isinstance(file, bytes)]
        answers = self._recognizer.predict_many(whole)
        found: list[Row] = []
        for source, file in zip(sources, files, strict=True):
            name = as_text(source)
            found.extend(_rows(name, next(answers) if isinstance(file, bytes) else file))
        return pa.Table.from_pylist(found, schema=self._schema)

    def _read(self, source: str) -> bytes | ServiceError:
        most = self._recognizer.settings.max_body_bytes
        try:
            if is_address(source):
                return read_photo_file(source, most)
            return read_file(Path(source), most)
        except ServiceError as error:
            return error


def _rows(source: str, answer: PredictReply | ServiceError) -> list[Row]:
    if isinstance(answer, PredictReply):
        return rows(source, answer)
    if isinstance(answer, RequestError | ImageFileError):
        return [{"source": source, ERROR: as_text(answer.detail)}]
    raise answer  # the network's fault, not the photo's: Ray tries again, or the job ends


def run_job(job: BulkJob) -> None:
    """Read every source into files of the output folder; returns when all are there.

    A worker that dies is replaced, and what it had in hand is read again. Raises BulkError where
    Ray cannot start, or where a worker fails for good; what was written until then stays.
    """
    _start_ray()
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    workers = job.workers or max(1, int(cpus))
    size = _block_size(len(job.sources), workers)
    blocks = [
        pa.table({"source": [s.encode(*NAMES) for s in job.sources[start : start + size]]})
        for start in range(0, len(job.sources), size)
    ]
    photos = ray.data.from_arrow(blocks)
    answers = photos.map_batches(
        PhotoReader,
        fn_constructor_kwargs={"settings": dict(job.settings)},
        batch_size=BATCH_PHOTOS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=job.gpus_per_worker or None,
    )
    system, folder = locate(job.output)
    try:
        answers.write_parquet(folder, filesystem=system)
    except ray.exceptions.RayError as error:
        raise BulkError(f"a worker failed: {_last_line(error)} (go on with --resume)") from error


def _start_ray() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises no class of its own here
            raise BulkError(f"Ray cannot start: {_last_line(error)}") from error
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()


def _last_line(error: Exception) -> str:
    """What a worker said last is the cause; before it stands how Ray came there."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _block_size(photos: int, workers: int) -> int:
    return max(1, min(MAX_BLOCK_PHOTOS, -(-photos // (workers * BLOCKS_PER_WORKER))))


def failures(folder: str) -> list[tuple[str, str]]:
    """Source and reason of each photo that could not be read, of this run and those before."""
    return [(str(row["source"]), str(row[ERROR])) for row in rows_with(folder, ERROR)]
