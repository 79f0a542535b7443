"""From the bytes of a photo to faces with expressions: the one place that joins the stages.

A photo is read on a lane, a thread that keeps it as long as it can; several looks or faces at once,
and everything that a GPU runs, go through the networks' queues. The event loop only waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batching import Batcher, BatchLimits
from service.budgets import LanePixels, NoRoomError, PixelBudget, Room
from service.errors import UnavailableError
from service.expression import ExpressionModel, Reading
from service.faces.alignment import HeadPose, head_pose
from service.faces.detector import (
    NOTHING,
    FaceDetector,
    Placement,
    merge,
)
from service.faces.face import Face
from service.faces.looks import FINE_SIDES, Found, Look, Search
from service.faces.refining import refinements
from service.imaging import DecodedImage, ImageLimits, decode_image
from service.observing import NETWORKS, Load, Observer, Stage
from service.precision import load_detector, load_expression
from service.runtime import PROVIDER_NAMES
from service.settings import Settings, available_cpus
from service.watch import StageWatch

UInt8 = NDArray[np.uint8]
Result = TypeVar("Result")

CPU = PROVIDER_NAMES["cpu"]
GPU_WORKERS = 2  # one batch runs while the next is stacked and copied
# Of the detector and the classifier. On a CPU a batch takes as long as its items one by one, and
# more memory.
CPU_BATCHES, GPU_BATCHES = (1, 4), (8, 32)
MAX_LOOKS = 16  # of one round of the detector
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
        load_detector(settings.detector_path, settings.precision, session),
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


class Wishes(NamedTuple):
    """What is wanted of a photo; None: as the settings say."""

    max_faces: int | None = None
    min_score: float | None = None
    search: Search | None = None
    whole: bool = False
    """Whether every pixel is wanted; else a large JPEG may be decoded at a half, a quarter or an
    eighth of its size."""


USUAL = Wishes()

Then = Callable[[Recognition, ExpressionModel], Result]
"""What is made of a photo, on the thread that read it, by the model that did."""


class PhotoReader(Protocol):
    """Reads photos: a pipeline in this process, or engines in others."""

    @property
    def load(self) -> Load:
        """What waits now, and what is held."""

    async def recognize(
        self,
        photo: bytes,
        then: Then[Result],
        wishes: Wishes = USUAL,
    ) -> Result:
        """See Pipeline.recognize."""

    async def drain(self, timeout_seconds: float) -> None:
        """Finish what was taken, then stop."""


@dataclass(eq=False)
class Task:
    """One photo to read; dropped once nobody waits for it any more."""

    photo: bytes | DecodedImage
    min_score: float | None
    max_faces: int
    search: Search
    whole: bool
    clock: StageClock
    has_turn: bool = False
    is_dropped: bool = False

    def require_waiter(self) -> None:
        """Raises UnavailableError where nobody waits any more: to go on would be in vain."""
        if self.is_dropped:
            raise UnavailableError("nobody waits for this photo")


@dataclass(frozen=True, eq=False)
class _Subject:
    """A face to read: where it is in the pixels at hand, and where in the photo."""

    pixels: UInt8
    face: Face
    in_photo: Face


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What a photo needs a network to run before it goes on."""

    stage: Stage
    network: Batcher[Any, Any]
    items: Sequence[Any]


@dataclass(frozen=True, eq=False)
class _Done(Generic[Result]):
    """A photo at its end."""

    result: Result


_Steps = Generator[_Wanted, Any, Result]


@dataclass(frozen=True, eq=False)
class _Lap:
    """A photo's next turn on a lane, with what the network gave that it wanted."""

    steps: _Steps[Any]
    results: list[Any] | None
    task: Task


class StageClock:
    """Adds up the time one photo spends in each stage; used by one thread at a time."""

    def __init__(self, started: float | None = None) -> None:
        """It runs since `started` (perf_counter), or from now on."""
        self._started = time.perf_counter() if started is None else started
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
        observer: Observer,
        pixels: PixelBudget | None = None,
        watch: StageWatch | None = None,
    ) -> None:
        """Of `pixels`, if given, each photo takes its own, after a wait where need be."""
        self.networks = networks
        self._pixels = pixels
        self._limits = ImageLimits(settings.max_body_bytes, settings.max_image_pixels)
        self._settings = settings
        self._observer = observer
        watch = watch or StageWatch()
        # What is no network's run: decoding, resizing, writing the reply.
        self._send = watch.watched("image", _send)
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
            observer=observer.batches_of("detector"),
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
            observer=observer.batches_of("classifier"),
        )
        self._lanes: Batcher[_Lap, _Wanted | _Done[Any] | Exception] = Batcher(
            "lane",
            lambda laps: [self._advance_or_error(lap) for lap in laps],
            key=lambda _: None,
            limits=BatchLimits(
                1, settings.max_in_flight_images, _lanes(networks.provider, settings)
            ),
        )
        self._run_on_lanes = _unbatched(networks.provider, settings)
        self._is_closed = False
        self._emptied = asyncio.Event()
        self._in_hand = 0  # photos that recognize() has taken
        self._waiting = 0  # and those of them that have no turn yet
        # Photos wait for their turn as files, not as pixels, and are answered in the order they
        # came rather than all at the end.
        self._turns = asyncio.Semaphore(
            _photos_side_by_side(networks.provider, workers, detector_batch, settings)
        )

    def start(self) -> None:
        """Start the workers, on the event loop that will call recognize()."""
        self._lanes.start()
        self.start_networks()

    def start_networks(self) -> None:
        """Start those of the networks alone, for read_here(); on an event loop that keeps going."""
        self._loop = asyncio.get_running_loop()
        self._detector.start()
        self._classifier.start()

    @property
    def load(self) -> Load:
        """See PhotoReader."""
        queues = (self._detector.queued, self._classifier.queued)
        return Load(
            self._waiting + self._lanes.queued,
            dict(zip(NETWORKS, queues, strict=True)),
            self._pixels.used if self._pixels else 0,
        )

    async def drain(self, timeout_seconds: float) -> None:
        """Finish what is queued, then stop."""
        self._is_closed = True
        deadline = time.monotonic() + timeout_seconds
        if self._in_hand:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), timeout_seconds)
        for batcher in (self._lanes, self._detector, self._classifier):
            await batcher.drain(max(0.0, deadline - time.monotonic()))

    def task(
        self,
        photo: bytes | DecodedImage,
        wishes: Wishes,
        asked: float | None = None,
    ) -> Task:
        """See recognize; it was asked for at `asked` (perf_counter), or now."""
        usual = self._settings
        return Task(
            photo,
            usual.min_score if wishes.min_score is None else wishes.min_score,
            usual.max_faces if wishes.max_faces is None else wishes.max_faces,
            wishes.search or usual.search,
            wishes.whole,
            StageClock(asked),
        )

    async def recognize(
        self,
        photo: bytes | DecodedImage,
        then: Then[Result],
        wishes: Wishes = USUAL,
    ) -> Result:
        """Read a photo, encoded or not, and answer what `then` makes of it, in a worker thread.

        Cancelling the call takes its work out of the queues. Raises what decode_image raises,
        InferenceError where a network failed, UnavailableError while draining.
        """
        task = self.task(photo, wishes)
        if self._is_closed:
            raise UnavailableError("the service is shutting down")
        self._in_hand += 1
        self._waiting += 1
        try:
            async with self._turns:
                self._waiting -= 1
                task.has_turn = True
                if self._pixels is None:
                    return await self._follow(self._steps(task, then, None), task)
                with self._pixels.room() as room:
                    return await self._in_room(room, task, then)
        finally:
            self._let_go(task)

    def read_here(
        self,
        task: Task,
        then: Then[Result],
        *,
        pixels: LanePixels,
        is_crowded: Callable[[], bool],
    ) -> Result:
        """As recognize, from the start to the end on the calling thread, which waits meanwhile.

        `is_crowded` tells whether other threads have photos for every core. Raises as recognize,
        and UnavailableError once the task is dropped.
        """
        taken = 0

        def require(count: int) -> None:
            nonlocal taken
            if not pixels.try_take(count):
                raise NoRoomError(count)
            taken += count

        try:
            try:
                return self._follow_here(self._steps(task, then, require), task, is_crowded)
            except NoRoomError as full:
                count = full.pixels
            # Here, where no stage is: to wait is no part of decoding, and no hang of it.
            pixels.take(count, task.require_waiter)
            taken = count
            return self._follow_here(self._steps(task, then, None), task, is_crowded)
        finally:
            pixels.give_back(taken)

    def _follow_here(
        self, steps: _Steps[Result], task: Task, is_crowded: Callable[[], bool]
    ) -> Result:
        lap = _Lap(steps, None, task)
        while not isinstance(reached := self._advance(lap, is_crowded), _Done):
            run = asyncio.run_coroutine_threadsafe(self._run(reached, task.clock), self._loop)
            lap = _Lap(steps, run.result(), task)
        result: Result = reached.result
        return result

    async def _in_room(self, room: Room, task: Task, then: Then[Result]) -> Result:
        try:
            return await self._follow(self._steps(task, then, room.require), task)
        except NoRoomError as full:
            pixels = full.pixels
        # Not within the handler: it would keep the error, and what that refers to, alive.
        await room.wait_for(pixels)
        return await self._follow(self._steps(task, then, None), task)

    def _let_go(self, task: Task) -> None:
        task.is_dropped = True
        self._waiting -= 0 if task.has_turn else 1
        self._in_hand -= 1
        if self._is_closed and not self._in_hand:
            self._emptied.set()

    async def _follow(self, steps: _Steps[Result], task: Task) -> Result:
        """Take a photo through its steps: on a lane, and through a network's queue in between."""
        results: list[Any] | None = None
        while True:
            [lap] = await self._lanes.submit([_Lap(steps, results, task)])
            reached = lap.result
            del lap
            if isinstance(reached, Exception):
                try:
                    raise reached
                finally:
                    del reached  # or the error would hold this frame, which holds the error
            if not isinstance(reached, _Wanted):
                done: _Done[Result] = reached
                return done.result
            results = await self._run(reached, task.clock)

    def _advance_or_error(self, lap: _Lap) -> _Wanted | _Done[Any] | Exception:
        try:
            return self._advance(lap, lambda: self._lanes.queued > 0)
        except Exception as error:  # noqa: BLE001 - raised where the photo is waited for
            return error

    def _advance(self, lap: _Lap, is_crowded: Callable[[], bool]) -> _Wanted | _Done[Any]:
        """Take one photo on, as far as it comes without the networks' queues."""
        results = lap.results
        try:
            while True:
                lap.task.require_waiter()
                wanted = self._send(lap.steps, results)
                if not self._runs_here(wanted, is_crowded()):
                    return wanted
                results = self._run_here(wanted, lap.task)
        except StopIteration as end:
            return _Done(end.value)

    def _runs_here(self, wanted: _Wanted, is_crowded: bool) -> bool:
        # From thread to thread, a photo leaves a core's caches behind. Where batches gain nothing,
        # only several items of a photo that is alone are done sooner elsewhere, side by side.
        return wanted.stage in self._run_on_lanes and (len(wanted.items) == 1 or is_crowded)

    def _run_here(self, wanted: _Wanted, task: Task) -> list[Any]:
        started = time.perf_counter()
        outcomes = [wanted.network.run_here(item, task.require_waiter) for item in wanted.items]
        waited = sum(outcome.queued_seconds for outcome in outcomes)
        task.clock.add(wanted.stage, time.perf_counter() - started - waited)
        return [outcome.result for outcome in outcomes]

    async def _run(self, wanted: _Wanted, clock: StageClock) -> list[Any]:
        asked = time.perf_counter()
        outcomes = await wanted.network.submit(wanted.items)
        waited = min(outcome.queued_seconds for outcome in outcomes)
        clock.add(wanted.stage, time.perf_counter() - asked - waited)
        return [outcome.result for outcome in outcomes]

    def _steps(
        self,
        task: Task,
        then: Then[Result],
        require: Callable[[int], None] | None,
    ) -> _Steps[Result]:
        """A photo from its bytes to what is made of it; yields what a network is to run."""
        image = self._decode(task, None if task.whole else FINE_SIDES[-1], require)
        found = NOTHING
        height, width = image.pixels.shape[:2]
        for turn in self.networks.detector.rounds(height, width, task.search):
            # The plan says which of its later rounds it needs.
            if looks := turn.wanted(found):
                found = merge(found, (yield from self._look(image, looks, task)))
        faces = yield from self._refine(image, found.faces[: task.max_faces], task)
        subjects = self._subjects(image, faces, task)
        read: list[ReadFace] = []
        if subjects:
            read = yield _Wanted("classify", self._classifier, subjects)
        recognition = Recognition(image, tuple(read), len(found.faces), task.clock.finish())
        self._record(recognition)
        return then(recognition, self.networks.classifier)

    def _decode(
        self,
        task: Task,
        enough: int | None = None,
        require: Callable[[int], None] | None = None,
    ) -> DecodedImage:
        if isinstance(task.photo, DecodedImage):
            return task.photo
        with task.clock.measure("decode"):
            return decode_image(task.photo, self._limits, admit=require, enough=enough)

    def _look(
        self, image: DecodedImage, looks: Sequence[Look], task: Task
    ) -> Generator[_Wanted, list[Any], list[Found]]:
        """What each of these looks shows, in pixels of `image`."""
        place = self.networks.detector.place
        with task.clock.measure("detect"):
            placements = [place(image.pixels, look, task.min_score) for look in looks]
        found: list[Found] = yield _Wanted("detect", self._detector, placements)
        return found

    def _refine(
        self, image: DecodedImage, faces: Sequence[Face], task: Task
    ) -> Generator[_Wanted, list[Any], Sequence[Face]]:
        """The faces with better landmarks, where further looks show them."""
        steps = refinements(faces, *image.pixels.shape[:2])
        found: Sequence[Found] | None = None  # which starts it
        while True:
            try:
                looks = steps.send(found)
            except StopIteration as end:
                refined: Sequence[Face] = end.value
                return refined
            found = yield from self._look(image, looks, task)

    def _subjects(self, image: DecodedImage, faces: Sequence[Face], task: Task) -> list[_Subject]:
        """What the classifier reads, with enough pixels for its crops."""
        enlarged = (self.networks.classifier.scale(face) > 1 for face in faces)
        source = image
        if image.reduction > 1 and any(enlarged):
            source = self._decode(task)
        ratio = image.reduction / source.reduction
        return [
            _Subject(source.pixels, face.scaled(ratio), _in_photo(face, image)) for face in faces
        ]

    def _read(self, subjects: Sequence[_Subject]) -> list[ReadFace]:
        """One batch: cut the faces out, read them."""
        classifier = self.networks.classifier
        crops = [classifier.crop(subject.pixels, subject.face) for subject in subjects]
        readings = classifier.infer(crops)
        return [
            ReadFace(FoundFace(s.in_photo, head_pose(s.in_photo.landmarks), crop), reading)
            for s, crop, reading in zip(subjects, crops, readings, strict=True)
        ]

    def _record(self, recognition: Recognition) -> None:
        labels = self.networks.classifier.contract.labels
        faces = []
        for face in recognition.faces:
            probabilities = face.reading.probabilities
            best = int(probabilities.argmax())
            faces.append((labels[best], float(probabilities[best])))
        self._observer.photo_read(recognition.seconds, recognition.faces_found, faces)


def _send(steps: _Steps[Result], results: list[Any] | None) -> _Wanted:
    return steps.send(results)


def _in_photo(face: Face, image: DecodedImage) -> Face:
    """A face of the decoded pixels, in the photo's; sides of a reduced JPEG are rounded up."""
    face = face.scaled(image.reduction)
    return face if image.reduction == 1 else face.within(image.size)


def _photos_side_by_side(
    provider: str, workers: int, detector_batch: int, settings: Settings
) -> int:
    # On a CPU, enough that no core waits while a photo goes from one thread to the next.
    if provider == CPU:
        return workers * (detector_batch + 2)
    return settings.max_in_flight_images


def _lanes(provider: str, settings: Settings) -> int:
    # On a CPU one more than cores, which else stand still while a lane waits for Python.
    return settings.image_workers or available_cpus() + (provider == CPU)


def _unbatched(provider: str, settings: Settings) -> frozenset[Stage]:
    """The stages whose network gains nothing by batches, and was not told to make any."""
    sizes: dict[Stage, int] = {
        "detect": settings.max_detector_batch,
        "classify": settings.max_classifier_batch,
    }
    return frozenset(stage for stage, size in sizes.items() if provider == CPU and not size)


def _batch_sizes(provider: str, settings: Settings) -> tuple[int, int]:
    usual = CPU_BATCHES if provider == CPU else GPU_BATCHES
    return settings.max_detector_batch or usual[0], settings.max_classifier_batch or usual[1]


def _default_workers(provider: str) -> int:
    # One thread an inference and one inference a core gives a CPU the most photos a second.
    return available_cpus() if provider == CPU else GPU_WORKERS
