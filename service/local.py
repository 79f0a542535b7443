"""Reading photos in process, without a server::

    from service import Recognizer

    with Recognizer.load() as recognizer:
        reply = recognizer.predict("photo.jpg")
        print(reply.faces[0].expression.label)

It runs the service's own pipeline, so that the answers are the service's and calls from several
threads share its networks.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import ImageFileError, ServiceError, UnavailableError
from service.expression import ExpressionModel
from service.files import read_file
from service.imaging import DecodedImage, ImageLimits, from_pillow
from service.metrics import Metrics
from service.options import check_options, wishes_of
from service.pipeline import Networks, Pipeline, Recognition, load_networks
from service.replies import Reply
from service.schemas import PredictOptions, PredictReply
from service.settings import Settings, load_settings
from service.sources import is_address

UInt8 = NDArray[np.uint8]
Photo = str | Path | bytes | bytearray | memoryview | Image.Image | UInt8
"""A path, the bytes of an image file, a Pillow image, or [H,W,3] uint8 RGB, upright."""
Result = TypeVar("Result")

DEFAULT_OPTIONS = PredictOptions()
IN_FLIGHT_PER_CPU = 2  # the next photo is there when a thread is done with one
CLOSE_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class Answer:
    """What one photo gave."""

    reply: PredictReply
    picture: UInt8 | None
    """[H,W,3] uint8 RGB, upright, with everything drawn on it; None unless asked for."""


class Recognizer:
    """Reads photos in this process. Every method is thread-safe; load it once and share it.

    A process that forks must load it after the fork. Close it, or use it in a `with` block, where
    its threads shall end before the process does.
    """

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self.networks = networks
        self.settings = settings
        self._limits = ImageLimits(settings.max_body_bytes, settings.max_image_pixels)
        workers = settings.photo_threads
        self._window = min(settings.max_in_flight_images, workers * IN_FLIGHT_PER_CPU)
        # The pipeline refuses what does not fit into its queues; in process, callers wait.
        self._permits = threading.BoundedSemaphore(settings.max_in_flight_images)
        self._submitting = threading.Lock()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="recognizer")
        self._pipeline = Pipeline(networks, settings, observer=Metrics())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="recognizer-loop", daemon=True
        )
        self._thread.start()
        self._call(self._start())

    @classmethod
    def load(cls, **settings: Any) -> Recognizer:  # noqa: ANN401 - checked by Settings
        """Load both networks; `settings` are those of `service.settings.Settings` by name.

        What is not given comes from the environment (`LAN_FER_*`) or the defaults. Raises
        StartupError (wrong setting, missing or unsound model, provider that is not there).
        """
        chosen = load_settings(**settings)
        return cls(load_networks(chosen), chosen)

    def predict(self, photo: Photo, options: PredictOptions = DEFAULT_OPTIONS) -> PredictReply:
        """The faces in one photo: the reply of POST /predict, with an id of its own.

        `photo` is a path, the bytes of an image file, a Pillow image (turned upright by its EXIF
        orientation) or an array [H,W,3] uint8 RGB, upright. Boxes and landmarks are in pixels of
        the upright photo.

        Raises RequestError (the photo or an option is at fault), ImageFileError (the path cannot
        be read), InferenceError, TypeError (no photo, no PredictOptions), ValueError (an array of
        another type or shape), and RuntimeError once the recognizer is closed.
        """
        return self._answer(photo, options, draw=False).reply

    def draw(self, photo: Photo, options: PredictOptions = DEFAULT_OPTIONS) -> UInt8:
        """The photo, upright, with everything drawn on it: [H,W,3] uint8 RGB. Raises as predict."""
        picture = self._answer(photo, options, draw=True).picture
        assert picture is not None, "a picture was asked for"
        return picture

    def predict_many(
        self, photos: Iterable[Photo], options: PredictOptions = DEFAULT_OPTIONS
    ) -> Iterator[PredictReply | ServiceError]:
        """A reply for each photo, in order; several are read at a time.

        A photo that cannot be read gives the error that `predict` would raise, and the others go
        on. Takes photos from the iterable as it goes, so that it may be endless.

        Raises what `predict` raises beside a ServiceError, TypeError for a photo alone, and
        InvalidOptionError.
        """
        answers = self.answer_many(photos, options)
        return (answer.reply if isinstance(answer, Answer) else answer for answer in answers)

    def answer_many(
        self,
        photos: Iterable[Photo],
        options: PredictOptions = DEFAULT_OPTIONS,
        *,
        draw: bool = False,
    ) -> Iterator[Answer | ServiceError]:
        """As predict_many, with the drawn pictures where `draw` asks for them."""
        # Not a generator: what is wrong with the call is raised by the call.
        _require_several(photos)
        self._check(options)
        return self._answers(photos, options, draw=draw)

    def _answers(
        self, photos: Iterable[Photo], options: PredictOptions, *, draw: bool
    ) -> Iterator[Answer | ServiceError]:
        pending: deque[Future[Answer]] = deque()
        try:
            for photo in photos:
                pending.append(self._submit(photo, options, draw=draw))
                if len(pending) >= self._window:
                    yield _outcome(pending.popleft())
            while pending:
                yield _outcome(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def warm_up(self) -> None:
        """Run every input size once, so that no later call pays for a first time."""
        self.networks.warm_up()

    def close(self) -> None:
        """Finish what is running and end the threads; the recognizer is of no use afterwards."""
        with self._submitting:
            was_closed, self._is_closed = self._is_closed, True
        if was_closed:
            self._thread.join()  # until whoever closes it has done so
            return
        self._call(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _start(self) -> None:
        self._pipeline.start()

    async def _finish(self) -> None:
        await self._pipeline.drain(CLOSE_SECONDS)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _check(self, options: PredictOptions) -> None:
        if not isinstance(options, PredictOptions):
            raise TypeError(f"options are a PredictOptions, not {type(options).__name__}")
        labels = self.networks.classifier.contract.labels
        check_options(options, max_faces=self.settings.max_faces, labels=labels)

    def _answer(self, photo: Photo, options: PredictOptions, *, draw: bool) -> Answer:
        self._check(options)
        return _result(self._submit(photo, options, draw=draw))

    def _submit(self, photo: Photo, options: PredictOptions, *, draw: bool) -> Future[Answer]:
        self._permits.acquire()
        # Here and not in _check: between two photos of many, too, it may be closed.
        with self._submitting:
            if self._is_closed:
                self._permits.release()
                raise RuntimeError("the recognizer has been closed")
            work = self._recognize(photo, options, draw=draw)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda _: self._permits.release())
        return future

    async def _recognize(self, photo: Photo, options: PredictOptions, *, draw: bool) -> Answer:
        offload = partial(self._loop.run_in_executor, self._pool)
        opened = await offload(partial(_open, photo, self._limits))
        reply = Reply(options, uuid.uuid4().hex)

        def answer(recognition: Recognition, classifier: ExpressionModel) -> Answer:
            writer = reply.writer(classifier)
            picture = writer.drawn(recognition) if draw else None
            return Answer(writer.reply(recognition), picture)

        return await self._pipeline.recognize(opened, answer, wishes_of(options, whole=draw))


def _outcome(future: Future[Answer]) -> Answer | ServiceError:
    try:
        return _result(future)
    except ServiceError as error:
        return error
    finally:
        del future  # as below


def _result(future: Future[Answer]) -> Answer:
    try:
        return future.result()
    except CancelledError as error:
        raise UnavailableError("the recognizer was closed before it came to this photo") from error
    finally:
        del future  # its error holds this frame, which would hold the error


def _require_several(photos: object) -> None:
    """Raises TypeError for one photo, which would be taken letter by letter or row by row."""
    alone = isinstance(photos, str | Path | bytes | bytearray | memoryview | Image.Image)
    if alone or (isinstance(photos, np.ndarray) and photos.ndim == 3):
        raise TypeError(
            f"photos are a list of photos, not one alone ({type(photos).__name__}); "
            "put it into a list, or call predict or draw"
        )


def _open(photo: Photo, limits: ImageLimits) -> bytes | DecodedImage:
    """The photo as the pipeline takes it: bytes of a file, or pixels."""
    if isinstance(photo, str) and is_address(photo):
        raise ImageFileError(
            f"{photo}: A web address is not fetched; give a path, or the bytes of the image file."
        )
    if isinstance(photo, str | Path):
        return read_file(Path(photo), limits.max_bytes)
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, Image.Image):
        return from_pillow(photo, limits)
    if isinstance(photo, np.ndarray):
        return DecodedImage(_checked(photo), "RAW", frames=1)
    raise TypeError(
        "a photo is a path, the bytes of an image file, a Pillow image or an array [H,W,3] uint8 "
        f"RGB, not {type(photo).__name__}"
    )


def _checked(pixels: UInt8) -> UInt8:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            "an array must be [H,W,3] uint8 RGB with at least one pixel, "
            f"not {list(pixels.shape)} {pixels.dtype}"
        )
    return np.ascontiguousarray(pixels)
