"""The dynamic batcher: many callers, one network, batches of whatever is queued when it is idle.

Nothing waits for company: a worker takes what is queued the moment it is idle, and while it runs
the next batch gathers. The batcher knows nothing of images; both networks use it, and the lanes on
which photos are read, one by one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import InferenceError, OverloadedError, UnavailableError
from service.observing import BatchObserver

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchLimits:
    """How a batcher works: `workers` batches side by side, of at most `max_batch` items each,
    and at most `max_queued` items that wait.
    """

    max_batch: int
    max_queued: int
    workers: int = 1


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """One item's result, and how long it waited for its batch to start (seconds)."""

    result: Result
    queued_seconds: float


@dataclass(frozen=True, eq=False)
class _Run(Generic[Result]):
    """What came of a batch, and when it started (perf_counter)."""

    results: Sequence[Result]
    error: BaseException | None
    started: float


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    key: Hashable
    future: asyncio.Future[Batched[Result]]
    queued_at: float = field(default_factory=time.perf_counter)


class _Bell:
    """Wakes threads that wait for work, the last one to fall asleep first.

    A core's caches still hold what that one worked with. A Condition wakes the first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asleep: list[threading.Lock] = []

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self) -> None:
        """Sleep until woken; call it, as the others, in a `with` block."""
        bed = threading.Lock()
        bed.acquire()
        self._asleep.append(bed)
        self._lock.release()
        try:
            bed.acquire()
        finally:
            self._lock.acquire()

    def wake(self, most: int) -> None:
        """Wake up to so many threads."""
        for _ in range(min(most, len(self._asleep))):
            self._asleep.pop().release()


class Batcher(Generic[Item, Result]):
    """Runs `run` on batches of items whose keys are equal.

    `run` gets 1 to `max_batch` items and returns one result for each, in order; it may block, and
    with several workers it is called from several threads at once. Submit from one event loop.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        key: Callable[[Item], Hashable],
        limits: BatchLimits,
        observer: BatchObserver | None = None,
    ) -> None:
        self._name = name
        self._run = run
        self._key = key
        self._limits = limits
        self._observer = observer
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._changed = _Bell()
        # Of run_here and the workers together: each run has its memory.
        self._slots = threading.Semaphore(limits.workers)
        self._idle = 0
        self._closed = False
        self._running: set[_Entry[Item, Result]] = set()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def queued(self) -> int:
        """Items that wait for a batch now."""
        return len(self._queue)

    def start(self) -> None:
        """Start the workers; call it once, on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._limits.workers):
            # Daemons: a network that hangs must not keep the process from ending.
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def submit(self, items: Sequence[Item]) -> list[Batched[Result]]:
        """Results for `items`, in order; they may be run in different batches.

        A cancelled call takes its items out of the queue. Raises OverloadedError where they do not
        all fit into the queue, UnavailableError once closed, InferenceError where a batch failed.
        """
        futures = self._enqueue(items)
        try:
            if len(futures) == 1:
                return [await futures[0]]
            return list(await asyncio.gather(*futures))
        finally:
            # When one failed, nobody waits for the others. None is kept by this frame: the error
            # holds it.
            while futures:
                futures.pop().cancel()

    def run_here(self, item: Item, require: Callable[[], None]) -> Batched[Result]:
        """The result for one item, run in the calling thread, past the queue.

        It waits until fewer than `workers` batches run; `require` is called then, and may raise.
        Raises UnavailableError once closed, InferenceError where the item failed.
        """
        if self._closed:
            raise UnavailableError("the service is shutting down")
        asked = time.perf_counter()
        with self._slots:
            require()
            run = self._run_counted([item])
        try:
            if run.error is not None:
                raise _failure(self._name, run.error)
            return Batched(run.results[0], run.started - asked)
        finally:
            del run  # an error raised here would hold this frame, which holds the error

    def _enqueue(self, items: Sequence[Item]) -> list[asyncio.Future[Batched[Result]]]:
        loop = asyncio.get_running_loop()
        entries = [
            _Entry[Item, Result](item, self._key(item), loop.create_future()) for item in items
        ]
        with self._changed:
            if self._closed:
                raise UnavailableError("the service is shutting down")
            if len(self._queue) + len(entries) > self._limits.max_queued:
                self._forget_cancelled()
            if len(self._queue) + len(entries) > self._limits.max_queued:
                raise OverloadedError(f"the queue of the {self._name} is full")
            self._queue.extend(entries)
            self._changed.wake(len(entries))
        return [entry.future for entry in entries]

    async def drain(self, timeout_seconds: float) -> None:
        """Take no more items, run what is queued, and stop.

        Waiters that are still there after `timeout_seconds` get UnavailableError.
        """
        with self._changed:
            self._closed = True
            self._changed.wake(self._limits.workers)
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))
        with self._changed:
            left = [*self._queue, *self._running]
            self._queue.clear()
        for entry in left:
            _fail(entry.future, UnavailableError("the service stopped before the image was read"))

    def _work(self) -> None:
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        # A frame of its own: an idle worker must not keep its last batch's images alive.
        batch = self._take()
        if batch:
            self._run_batch(batch)
        with self._changed:
            self._running.difference_update(batch)
        try:
            return bool(batch)
        finally:
            del batch  # its errors hold this frame

    def _take(self) -> list[_Entry[Item, Result]]:
        """Block until there is a batch; empty once closed and drained."""
        with self._changed:
            self._idle += 1
            try:
                while True:
                    batch = self._next_batch()
                    if batch or self._closed:
                        self._running.update(batch)
                        return batch
                    self._changed.wait()
            finally:
                self._idle -= 1

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        """The oldest item and those that may run with it, in the order they came."""
        self._forget_cancelled()
        if not self._queue:
            return []
        matching = [entry for entry in self._queue if entry.key == self._queue[0].key]
        # Idle workers share what there is: on a CPU two halves side by side are done sooner.
        share = -(-len(matching) // self._idle)
        batch = matching[: min(share, self._limits.max_batch)]
        taken = set(map(id, batch))
        self._queue = deque(entry for entry in self._queue if id(entry) not in taken)
        return batch

    def _forget_cancelled(self) -> None:
        self._queue = deque(entry for entry in self._queue if not entry.future.cancelled())

    def _run_batch(self, batch: list[_Entry[Item, Result]]) -> None:
        with self._slots:
            batch = [entry for entry in batch if not entry.future.cancelled()]
            if not batch:
                return
            run = self._run_counted([entry.item for entry in batch])
        if run.error is None:
            self._on_loop(_deliver, batch, list(run.results), run.started)
        else:
            self._on_loop(_fail_all, batch, run.error, self._name)
        del run, batch  # an error among them holds this frame

    def _run_counted(self, items: Sequence[Item]) -> _Run[Result]:
        error: BaseException | None = None
        results: Sequence[Result] = ()
        started = time.perf_counter()
        try:
            results = self._run(items)
            if len(results) != len(items):
                error = ValueError(f"{len(results)} results for {len(items)} items")
        except BaseException as caught:  # noqa: BLE001 - every waiter must hear of it
            error = caught
        seconds = time.perf_counter() - started
        if self._observer is not None:
            self._observer.batch_finished(len(items), seconds, failed=error is not None)
        try:
            return _Run(results, error, started)
        finally:
            del results, error  # an error holds this frame

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None, "start() was called"
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            logger.warning("%s: a batch ended after its waiters", self._name)


def _deliver(
    batch: Sequence[_Entry[Item, Result]], results: Sequence[Result], started: float
) -> None:
    for entry, result in zip(batch, results, strict=True):
        if not entry.future.done():
            entry.future.set_result(Batched(result, started - entry.queued_at))


def _fail_all(batch: Sequence[_Entry[Item, Result]], cause: BaseException, name: str) -> None:
    for entry in batch:
        _fail(entry.future, _failure(name, cause))


def _failure(name: str, cause: BaseException) -> InferenceError:
    error = InferenceError(f"the {name} failed")
    error.__cause__ = cause
    return error


def _fail(future: asyncio.Future[Batched[Result]], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
