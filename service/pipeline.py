"""From the bytes of a photo to faces with expressions: the one place that joins the stages.

Decoding, resizing and alignment run in a small pool of threads, the networks in their batchers'
workers; the event loop only waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batching import Batcher, BatchLimits
from service.budgets import NoRoomError, Room
from service.expression import ExpressionModel, Reading
from service.faces.alignment import HeadPose, head_pose
from service.faces.detector import Face, FaceDetector, Look, Placement, RawDetections
from service.imaging import DecodedImage, ImageLimits, decode_image
from service.metrics import Metrics, Stage
from service.settings import Settings, available_cpus
from service.watch import StageWatch

UInt8 = NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_WORKERS = 2  # one batch runs while the next is stacked and copied
MAX_LOOKS = 2  # of one round of the detector
STAGES: tuple[Stage, ...] = ("decode", "detect", "classify")


@dataclass(frozen=True, eq=False)
class Networks:
    """The two networks the service runs."""

    detector: FaceDetector
    classifier: ExpressionModel

    @property
    def provider(self) -> str:
        """The ONNX Runtime provider the expression network runs on."""
        return self.classifier.providers[0]

    def warm_up(self) -> None:
        """Run every input size once (blocking). Raises InferenceError."""
        self.detector.warm_up()
        self.classifier.warm_up()


def load_networks(settings: Settings) -> Networks:
    """Load both networks (blocking). Raises a StartupError."""
    session = settings.session_settings
    return Networks(
        FaceDetector.load(settings.detector_path, session),
        ExpressionModel.load(settings.model_path, session),
    )


@dataclass(frozen=True, eq=False)
class FoundFace:
    """A face before the expression network: where it is, how the head is turned, its crop."""

    face: Face
    pose: HeadPose
    crop: UInt8
    """[S,S,3] RGB, aligned."""


@dataclass(frozen=True, eq=False)
class ReadFace:
    """A face and what the expression network read in it."""

    found: FoundFace
    reading: Reading


@dataclass(frozen=True, eq=False)
class Recognition:
    """Everything known about one photo."""

    image: DecodedImage
    faces: tuple[ReadFace, ...]
    """Largest first, at most as many as were asked for."""
    faces_found: int
    seconds: dict[Stage, float]
    """decode, detect, classify, queue (everything that was waiting) and total."""


class StageClock:
    """Adds up the time one photo spends in each stage; used by one thread at a time."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[Stage, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Count the block's time to `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        """Count `seconds` to `stage`."""
        self._seconds[stage] += seconds

    def finish(self) -> dict[Stage, float]:
        """All stages, with queue: what of the total no stage accounts for."""
        total = time.perf_counter() - self._started
        worked = {stage: self._seconds[stage] for stage in STAGES}
        return {**worked, "queue": max(0.0, total - sum(worked.values())), "total": total}


class Pipeline:
    """Reads photos, many at a time. Use it from one event loop, between start() and drain()."""

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        *,
        pool: ThreadPoolExecutor,
        metrics: Metrics,
        watch: StageWatch | None = None,
    ) -> None:
        self.networks = networks
        self._limits = ImageLimits(settings.max_body_bytes, settings.max_image_pixels)
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        watch = watch or StageWatch()
        workers = settings.inference_workers or _default_workers(networks.provider)
        self._detector: Batcher[Placement, RawDetections] = Batcher(
            "detector",
            watch.watched("detector", networks.detector.infer),
            key=lambda placement: placement.look.canvas,
            limits=BatchLimits(
                settings.max_detector_batch, settings.max_in_flight_images * MAX_LOOKS, workers
            ),
            observer=metrics.batches_of("detector"),
        )
        self._classifier: Batcher[UInt8, Reading] = Batcher(
            "classifier",
            watch.watched("classifier", networks.classifier.infer),
            key=lambda crop: crop.shape,
            limits=BatchLimits(
                settings.max_classifier_batch,
                settings.max_in_flight_images * settings.max_faces,
                workers,
            ),
            observer=metrics.batches_of("classifier"),
        )

    def start(self) -> None:
        """Start the workers, on the event loop that will call recognize()."""
        self._detector.start()
        self._classifier.start()
        self._metrics.watch_queue("detector", lambda: self._detector.queued)
        self._metrics.watch_queue("classifier", lambda: self._classifier.queued)

    async def drain(self, timeout_seconds: float) -> None:
        """Finish what is queued, then stop."""
        await self._detector.drain(timeout_seconds)
        await self._classifier.drain(timeout_seconds)

    async def recognize(
        self,
        photo: bytes | DecodedImage,
        *,
        max_faces: int | None = None,
        min_score: float | None = None,
        room: Room | None = None,
    ) -> Recognition:
        """Read a photo, encoded or not; options that are None take the service's settings.

        Where `room` is given, the photo's pixels are taken of it, after a wait where need be.
        Cancelling the call takes its work out of the queues. Raises what decode_image raises,
        InferenceError where a network failed, UnavailableError while draining.
        """
        clock = StageClock()
        limit = self._settings.max_faces if max_faces is None else max_faces
        threshold = self._settings.min_score if min_score is None else min_score
        image, placements = await self._open_in(room, photo, clock)
        faces = await self._detect(image, placements, threshold, clock)
        found = await self._offload(partial(self._align, image, faces[:limit], clock))
        readings = await self._run("classify", self._classifier, [f.crop for f in found], clock)
        recognition = Recognition(
            image=image,
            faces=tuple(map(ReadFace, found, readings)),
            faces_found=len(faces),
            seconds=clock.finish(),
        )
        self._record(recognition)
        return recognition

    async def _open_in(
        self, room: Room | None, photo: bytes | DecodedImage, clock: StageClock
    ) -> tuple[DecodedImage, list[Placement]]:
        require = None if room is None else room.require
        try:
            return await self._offload(partial(self._open, photo, clock, require))
        except NoRoomError as full:
            assert room is not None, "it was asked"
            await room.wait_for(full.pixels)
        return await self._offload(partial(self._open, photo, clock, None))

    def _open(
        self,
        photo: bytes | DecodedImage,
        clock: StageClock,
        require: Callable[[int], None] | None,
    ) -> tuple[DecodedImage, list[Placement]]:
        with clock.measure("decode"):
            if isinstance(photo, DecodedImage):
                image = photo
            else:
                image = decode_image(photo, self._limits, admit=require)
        height, width = image.pixels.shape[:2]
        first = self.networks.detector.rounds(height, width)[0].looks
        return image, self._place(image, first, clock)

    async def _detect(
        self,
        image: DecodedImage,
        placements: Sequence[Placement],
        min_score: float | None,
        clock: StageClock,
    ) -> list[Face]:
        """All faces; the detector says which of its later rounds a photo needs."""
        height, width = image.pixels.shape[:2]
        faces = await self._look(placements, [], min_score, clock)
        for turn in self.networks.detector.rounds(height, width)[1:]:
            if turn.needed(faces):
                again = await self._offload(partial(self._place, image, turn.looks, clock))
                faces = await self._look(again, faces, min_score, clock)
        return faces

    async def _look(
        self,
        placements: Sequence[Placement],
        earlier: Sequence[Face],
        min_score: float | None,
        clock: StageClock,
    ) -> list[Face]:
        raws = await self._run("detect", self._detector, placements, clock)
        finish = partial(
            self.networks.detector.finish, raws, placements, earlier=earlier, min_score=min_score
        )
        return await self._offload(partial(self._timed, "detect", finish, clock))

    def _place(
        self, image: DecodedImage, looks: Sequence[Look], clock: StageClock
    ) -> list[Placement]:
        with clock.measure("detect"):
            return [self.networks.detector.place(image.pixels, look) for look in looks]

    def _timed(self, stage: Stage, work: Callable[[], Result], clock: StageClock) -> Result:
        with clock.measure(stage):
            return work()

    def _align(
        self, image: DecodedImage, faces: Sequence[Face], clock: StageClock
    ) -> list[FoundFace]:
        crop = self.networks.classifier.crop
        with clock.measure("classify"):
            return [
                FoundFace(face, head_pose(face.landmarks), crop(image.pixels, face))
                for face in faces
            ]

    async def _offload(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _run(
        self,
        stage: Stage,
        batcher: Batcher[Item, Result],
        items: Sequence[Item],
        clock: StageClock,
    ) -> list[Result]:
        if not items:
            return []
        asked = time.perf_counter()
        outcomes = await batcher.submit(items)
        waited = min(outcome.queued_seconds for outcome in outcomes)
        clock.add(stage, time.perf_counter() - asked - waited)
        return [outcome.result for outcome in outcomes]

    def _record(self, recognition: Recognition) -> None:
        self._metrics.observe_stages(recognition.seconds)
        self._metrics.faces_per_image.observe(recognition.faces_found)
        for face in recognition.faces:
            self._metrics.faces.labels(self.label_of(face.reading)).inc()
            self._metrics.face_confidence.observe(float(face.reading.probabilities.max()))

    def label_of(self, reading: Reading) -> str:
        """The most probable expression."""
        return self.networks.classifier.contract.labels[int(reading.probabilities.argmax())]


def _default_workers(provider: str) -> int:
    # One thread an inference and one inference a core gives a CPU the most photos a second.
    return available_cpus() if provider == "CPUExecutionProvider" else GPU_WORKERS
