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
from service.faces.detector import (
    NOTHING,
    Face,
    FaceDetector,
    Placement,
    largest_first,
    merge,
    refined,
)
from service.faces.looks import FINE_SIDES, Found, Look, Turn, closer_look
from service.imaging import DecodedImage, ImageLimits, decode_image
from service.metrics import Metrics, Stage
from service.precision import load_expression
from service.settings import Settings, available_cpus
from service.watch import StageWatch

UInt8 = NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_WORKERS = 2  # one batch runs while the next is stacked and copied
# Of the detector and the classifier. On a CPU a batch takes as long as its items one by one, and
# more memory.
CPU_BATCHES, GPU_BATCHES = (1, 4), (8, 32)
MAX_LOOKS = 16  # of one round of the detector
MERGED_AT_ONCE = 100  # faces that cost the event loop less than handing them to a thread
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
        load_expression(settings.model_path, settings.precision, session),
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


@dataclass(frozen=True, eq=False)
class _Task:
    """One call of recognize."""

    photo: bytes | DecodedImage
    min_score: float | None
    whole: bool
    clock: StageClock


@dataclass(frozen=True, eq=False)
class _Subject:
    """A face to read: where it is in the pixels at hand, and where in the photo."""

    pixels: UInt8
    face: Face
    in_photo: Face


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
        detector_batch, classifier_batch = _batch_sizes(networks.provider, settings)
        self._detector: Batcher[Placement, Found] = Batcher(
            "detector",
            watch.watched("detector", networks.detector.find),
            key=lambda placement: placement.look.canvas,
            limits=BatchLimits(
                detector_batch,
                settings.max_in_flight_images * max(MAX_LOOKS, settings.max_faces),
                workers,
            ),
            observer=metrics.batches_of("detector"),
        )
        self._classifier: Batcher[_Subject, ReadFace] = Batcher(
            "classifier",
            watch.watched("classifier", self._read),
            key=lambda _: None,
            limits=BatchLimits(
                classifier_batch,
                settings.max_in_flight_images * settings.max_faces,
                workers,
            ),
            observer=metrics.batches_of("classifier"),
        )
        # Photos wait for their turn as files, not as pixels, and are answered in the order they
        # came rather than all at the end.
        self._turns = asyncio.Semaphore(
            _photos_side_by_side(networks.provider, workers, detector_batch, settings)
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
        whole: bool = False,
    ) -> Recognition:
        """Read a photo, encoded or not; options that are None take the service's settings.

        Where `room` is given, the photo's pixels are taken of it, after a wait where need be.
        `whole` asks for every pixel of the photo in the result; else a large JPEG may be decoded
        at a half, a quarter or an eighth of its size. Cancelling the call takes its work out of
        the queues. Raises what decode_image raises, InferenceError where a network failed,
        UnavailableError while draining.
        """
        threshold = self._settings.min_score if min_score is None else min_score
        task = _Task(photo, threshold, whole, StageClock())
        async with self._turns:
            image, placements = await self._open_in(room, task)
            found = await self._detect(image, placements, task)
            limit = self._settings.max_faces if max_faces is None else max_faces
            faces = await self._refine(image, found.faces[:limit], task)
            subjects = await self._subjects(image, faces, task)
            read = await self._run("classify", self._classifier, subjects, task.clock)
        recognition = Recognition(image, tuple(read), len(found.faces), task.clock.finish())
        self._record(recognition)
        return recognition

    async def _open_in(
        self, room: Room | None, task: _Task
    ) -> tuple[DecodedImage, list[Placement]]:
        require = None if room is None else room.require
        try:
            return await self._offload(partial(self._open, task, require))
        except NoRoomError as full:
            assert room is not None, "it was asked"
            await room.wait_for(full.pixels)
        return await self._offload(partial(self._open, task, None))

    def _open(
        self, task: _Task, require: Callable[[int], None] | None
    ) -> tuple[DecodedImage, list[Placement]]:
        with task.clock.measure("decode"):
            image = self._decode(task.photo, None if task.whole else FINE_SIDES[-1], require)
        return image, self._place(image, self._rounds(image)[0].wanted(NOTHING), task)

    def _decode(
        self,
        photo: bytes | DecodedImage,
        enough: int | None = None,
        require: Callable[[int], None] | None = None,
    ) -> DecodedImage:
        if isinstance(photo, DecodedImage):
            return photo
        return decode_image(photo, self._limits, admit=require, enough=enough)

    async def _detect(
        self, image: DecodedImage, placements: Sequence[Placement], task: _Task
    ) -> Found:
        """All faces, in pixels of `image`; the plan says which of its later rounds it needs."""
        looked = await self._run("detect", self._detector, placements, task.clock)
        found = await self._merge(NOTHING, looked)
        for turn in self._rounds(image)[1:]:
            if looks := turn.wanted(found):
                placements = await self._offload(partial(self._place, image, looks, task))
                looked = await self._run("detect", self._detector, placements, task.clock)
                found = await self._merge(found, looked)
        return found

    async def _merge(self, earlier: Found, looked: Sequence[Found]) -> Found:
        if sum(len(found.faces) for found in looked) <= MERGED_AT_ONCE:
            return merge(earlier, looked)
        return await self._offload(partial(merge, earlier, looked))

    async def _refine(
        self, image: DecodedImage, faces: Sequence[Face], task: _Task
    ) -> Sequence[Face]:
        """The faces, those with coarse landmarks after a closer look."""
        height, width = image.pixels.shape[:2]
        looks = {face: closer_look(face, height, width) for face in faces}
        wanted = {face: look for face, look in looks.items() if look is not None}
        if not wanted:
            return faces
        place = partial(self._place, image, tuple(wanted.values()), task)
        placements = await self._offload(place)
        closer = await self._run("detect", self._detector, placements, task.clock)
        better = dict(zip(wanted, map(refined, wanted, closer), strict=True))
        return largest_first(better.get(face, face) for face in faces)

    def _rounds(self, image: DecodedImage) -> tuple[Turn, ...]:
        height, width = image.pixels.shape[:2]
        return self.networks.detector.rounds(height, width)

    def _place(self, image: DecodedImage, looks: Sequence[Look], task: _Task) -> list[Placement]:
        place = self.networks.detector.place
        with task.clock.measure("detect"):
            return [place(image.pixels, look, task.min_score) for look in looks]

    async def _subjects(
        self, image: DecodedImage, faces: Sequence[Face], task: _Task
    ) -> list[_Subject]:
        """What the classifier reads, with enough pixels for its crops."""
        enlarged = (self.networks.classifier.scale(face) > 1 for face in faces)
        source = image
        if image.reduction > 1 and any(enlarged):
            source = await self._offload(partial(self._decode_again, task))
        ratio = image.reduction / source.reduction
        return [
            _Subject(source.pixels, face.scaled(ratio), _in_photo(face, image)) for face in faces
        ]

    def _decode_again(self, task: _Task) -> DecodedImage:
        with task.clock.measure("decode"):
            return self._decode(task.photo)

    def _read(self, subjects: Sequence[_Subject]) -> list[ReadFace]:
        """One batch: cut the faces out, read them."""
        classifier = self.networks.classifier
        crops = [classifier.crop(subject.pixels, subject.face) for subject in subjects]
        readings = classifier.infer(crops)
        return [
            ReadFace(FoundFace(s.in_photo, head_pose(s.in_photo.landmarks), crop), reading)
            for s, crop, reading in zip(subjects, crops, readings, strict=True)
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


def _in_photo(face: Face, image: DecodedImage) -> Face:
    """A face of the decoded pixels, in the photo's; sides of a reduced JPEG are rounded up."""
    face = face.scaled(image.reduction)
    return face if image.reduction == 1 else face.within(image.size)


def _photos_side_by_side(
    provider: str, workers: int, detector_batch: int, settings: Settings
) -> int:
    # On a CPU, enough that no core waits while a photo goes from one thread to the next.
    if provider == "CPUExecutionProvider":
        return workers * (detector_batch + 2)
    return settings.max_in_flight_images


def _batch_sizes(provider: str, settings: Settings) -> tuple[int, int]:
    usual = CPU_BATCHES if provider == "CPUExecutionProvider" else GPU_BATCHES
    return settings.max_detector_batch or usual[0], settings.max_classifier_batch or usual[1]


def _default_workers(provider: str) -> int:
    # One thread an inference and one inference a core gives a CPU the most photos a second.
    return available_cpus() if provider == "CPUExecutionProvider" else GPU_WORKERS
