"""Millions of photos: the recognizer as an actor of Ray Data, paths in, Parquet out.

On one machine it uses every core; where `RAY_ADDRESS` names a cluster, every machine of it, which
must see the same folders. Needs the extra `bulk`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import ImageFileError, OutputError, RequestError, ServiceError
from service.local import Recognizer
from service.parquet import SUFFIX, schema_of
from service.schemas import PredictOptions, PredictReply
from service.tables import Row, columns, rows

# Read when the library is loaded: without it, Ray reports its use to its makers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import ray
    import ray.data
except ImportError as error:
    raise OutputError("bulk needs Ray: pip install 'lan-fer[bulk]'.") from error

ERROR = "error"
MAX_BLOCK_PHOTOS = 1000  # one file of the output; what a lost worker has to read again
BLOCKS_PER_WORKER = 4  # at least, so that all end at about the same time


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """What to read, and with what."""

    sources: Sequence[Path]
    """Absolute paths."""
    output: Path
    """A folder for Parquet files."""
    settings: Mapping[str, str]
    """For Recognizer.load, in each worker."""
    options: PredictOptions
    workers: int | None
    """Actors; None: one a CPU of the cluster."""
    gpus_per_worker: float


def bulk_columns(labels: Sequence[str]) -> dict[str, type]:
    """Those of service.tables, and `error`: why a photo could not be read, else empty."""
    return columns(labels) | {ERROR: str}


class PhotoReader:
    """Reads batches of paths; Ray makes one in each worker and keeps it."""

    def __init__(self, settings: Mapping[str, str], options: PredictOptions) -> None:
        # Ray gives a worker one CPU unless told otherwise.
        self._recognizer = Recognizer.load(
            **{"image_workers": "1", "inference_workers": "1"} | dict(settings)
        )
        self._options = options
        self._schema = schema_of(bulk_columns(self._recognizer.networks.classifier.contract.labels))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """[N] paths in the column `source` to one row a face."""
        sources: list[str] = batch.column("source").to_pylist()
        answers = self._recognizer.predict_many(map(Path, sources), self._options)
        found: list[Row] = []
        for source, answer in zip(sources, answers, strict=True):
            found.extend(_rows(source, answer))
        return pa.Table.from_pylist(found, schema=self._schema)


def _rows(source: str, answer: PredictReply | ServiceError) -> list[Row]:
    if isinstance(answer, PredictReply):
        return rows(source, answer)
    if isinstance(answer, RequestError | ImageFileError):
        return [{"source": source, ERROR: answer.detail}]
    raise answer  # the network's fault, not the photo's: Ray tries again, or the job ends


def run_job(job: BulkJob) -> None:
    """Read every source into files of the output folder; returns when all are there.

    A worker that dies is replaced, and what it had in hand is read again. Raises what Ray raises
    where a worker fails for good.
    """
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    workers = job.workers or max(1, int(cpus))
    size = _block_size(len(job.sources), workers)
    names = [str(source) for source in job.sources]
    blocks = [pa.table({"source": names[i : i + size]}) for i in range(0, len(names), size)]
    photos = ray.data.from_arrow(blocks)
    answers = photos.map_batches(
        PhotoReader,
        fn_constructor_kwargs={"settings": dict(job.settings), "options": job.options},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=job.gpus_per_worker or None,
    )
    job.output.mkdir(parents=True, exist_ok=True)
    answers.write_parquet(str(job.output))


def _block_size(photos: int, workers: int) -> int:
    return max(1, min(MAX_BLOCK_PHOTOS, -(-photos // (workers * BLOCKS_PER_WORKER))))


def failures(folder: Path) -> list[tuple[str, str]]:
    """Source and reason of each photo that could not be read, of this run and those before."""
    found: list[tuple[str, str]] = []
    for part in sorted(folder.glob("*" + SUFFIX)):
        table = pq.read_table(part, columns=["source", ERROR])
        wrong = table.filter(pc.is_valid(table.column(ERROR)))
        found.extend((row["source"], row[ERROR]) for row in wrong.to_pylist())
    return found
