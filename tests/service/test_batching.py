from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from service.batching import Batched, Batcher, BatchLimits
from service.errors import InferenceError, OverloadedError, UnavailableError

PATIENCE_SECONDS = 30.0


@dataclass
class Network:
    """Squares numbers, so that a lost or swapped item is seen; can be held, and can fail."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[int]] = field(default_factory=list)
    fails_on: int | None = None

    def run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(PATIENCE_SECONDS)
        if self.fails_on in items:
            raise ZeroDivisionError("the network broke")
        return [item * item for item in items]

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE_SECONDS)


@dataclass
class Log:
    batches: list[tuple[int, bool]] = field(default_factory=list)

    def batch_finished(self, size: int, seconds: float, *, failed: bool) -> None:
        assert seconds >= 0
        self.batches.append((size, failed))


@asynccontextmanager
async def batching(
    run: Callable[[Sequence[int]], Sequence[int]],
    *,
    max_batch: int = 100,
    max_queued: int = 100,
    workers: int = 1,
    log: Log | None = None,
) -> AsyncIterator[Batcher[int, int]]:
    """Even and odd numbers do not share a batch."""
    batcher = Batcher[int, int](
        "network",
        run,
        key=lambda item: item % 2,
        limits=BatchLimits(max_batch, max_queued, workers),
        observer=log or Log(),
    )
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.drain(PATIENCE_SECONDS)


def values(outcomes: Sequence[Batched[int]]) -> list[int]:
    return [outcome.result for outcome in outcomes]


async def queue(batcher: Batcher[int, int], *items: int) -> asyncio.Task[list[Batched[int]]]:
    task = asyncio.create_task(batcher.submit(items))
    await asyncio.sleep(0)  # lets the task put its items into the queue
    return task


def test_results_come_back_in_order() -> None:
    async def scenario() -> None:
        network = Network()
        network.gate.set()
        async with batching(network.run, max_batch=3, workers=2) as batcher:
            crowd = await asyncio.gather(*(batcher.submit([i, i + 1]) for i in range(40)))
        assert [values(pair) for pair in crowd] == [[i * i, (i + 1) ** 2] for i in range(40)]
        assert all(len(batch) <= 3 for batch in network.batches)
        assert all(len({item % 2 for item in batch}) == 1 for batch in network.batches)
        assert sorted(item for batch in network.batches for item in batch) == sorted(
            [*range(40), *range(1, 41)]
        )

    asyncio.run(scenario())


def test_what_gathers_during_a_run_is_the_next_batch() -> None:
    async def scenario() -> None:
        network, log = Network(), Log()
        async with batching(network.run, max_batch=3, log=log) as batcher:
            first = await queue(batcher, 0)
            await network.wait_until_entered()
            rest = [await queue(batcher, item) for item in (1, 2, 3, 4, 6, 8, 10)]
            assert batcher.queued == 7
            network.gate.set()
            await asyncio.gather(first, *rest)
        # The oldest item decides; the others of its kind join it, up to the limit.
        assert network.batches == [[0], [1, 3], [2, 4, 6], [8, 10]]
        assert log.batches == [(1, False), (2, False), (3, False), (2, False)]

    asyncio.run(scenario())


def test_idle_workers_share_what_is_queued() -> None:
    async def scenario() -> None:
        network = Network()
        async with batching(network.run, workers=2) as batcher:
            held = [await queue(batcher, 0), await queue(batcher, 1)]
            await network.wait_until_entered()
            await network.wait_until_entered()
            rest = await queue(batcher, 2, 4, 6, 8)
            network.gate.set()
            assert values(await rest) == [4, 16, 36, 64]
            await asyncio.gather(*held)

    asyncio.run(scenario())


def test_the_worker_that_fell_asleep_last_takes_what_comes_next() -> None:
    threads: list[str] = []

    def run(items: Sequence[int]) -> Sequence[int]:
        threads.append(threading.current_thread().name)
        return items

    async def scenario() -> None:
        async with batching(run, workers=3) as batcher:
            for item in range(12):
                await asyncio.sleep(0.01)  # all are asleep, unless the machine is very busy
                assert values(await batcher.submit([item])) == [item]

    asyncio.run(scenario())
    # The first that fell asleep would be another one each time.
    assert sum(one != other for one, other in pairwise(threads)) <= 3


def test_queueing_time_is_told_apart() -> None:
    async def scenario() -> None:
        network = Network()
        network.gate.set()
        async with batching(network.run) as batcher:
            (outcome,) = await batcher.submit([3])
            assert outcome.queued_seconds >= 0
            assert await batcher.submit([]) == []

    asyncio.run(scenario())


def test_cancelled_items_never_run() -> None:
    async def scenario() -> None:
        network = Network()
        async with batching(network.run) as batcher:
            first = await queue(batcher, 0)
            await network.wait_until_entered()
            gone, stays = await queue(batcher, 2, 4), await queue(batcher, 6)
            gone.cancel()
            await asyncio.wait([gone])
            network.gate.set()
            await asyncio.gather(first, stays)
        assert network.batches == [[0], [6]]

    asyncio.run(scenario())


def test_failing_batch_fails_its_own_waiters_alone() -> None:
    async def scenario() -> None:
        network, log = Network(fails_on=2), Log()
        async with batching(network.run, log=log) as batcher:
            first = await queue(batcher, 0)
            await network.wait_until_entered()
            failing, companion = await queue(batcher, 2), await queue(batcher, 4)
            other = await queue(batcher, 1)
            network.gate.set()
            results = await asyncio.gather(failing, companion, return_exceptions=True)
            assert values(await first) + values(await other) == [0, 1]
            assert values(await batcher.submit([6])) == [36]
        for error in results:
            assert isinstance(error, InferenceError)
            assert isinstance(error.__cause__, ZeroDivisionError)
        assert results[0] is not results[1]
        assert log.batches == [(1, False), (2, True), (1, False), (1, False)]

    asyncio.run(scenario())


def test_failure_takes_the_callers_other_items_out_of_the_queue() -> None:
    async def scenario() -> None:
        caller_knows = threading.Event()
        batches: list[list[int]] = []

        def run(items: Sequence[int]) -> Sequence[int]:
            batches.append(list(items))
            if items == [1]:
                raise ZeroDivisionError
            assert caller_knows.wait(PATIENCE_SECONDS)
            return items

        async with batching(run, max_batch=1) as batcher:
            with pytest.raises(InferenceError):
                await batcher.submit([1, 3, 5])
            caller_knows.set()
            await batcher.submit([7])
        # 3 may have been running by then; 5 was not.
        assert batches in ([[1], [3], [7]], [[1], [7]])

    asyncio.run(scenario())


def test_wrong_number_of_results_is_a_failure() -> None:
    async def scenario() -> None:
        async with batching(lambda items: [1] * (len(items) + 1)) as batcher:
            with pytest.raises(InferenceError):
                await batcher.submit([1])

    asyncio.run(scenario())


def test_queue_is_bounded_all_or_nothing() -> None:
    async def scenario() -> None:
        network = Network()
        async with batching(network.run, max_queued=3) as batcher:
            first = await queue(batcher, 0)
            await network.wait_until_entered()
            second = await queue(batcher, 2, 4)
            with pytest.raises(OverloadedError):
                await batcher.submit([6, 8])
            assert batcher.queued == 2
            third = await queue(batcher, 6)
            network.gate.set()
            await asyncio.gather(first, second, third)

    asyncio.run(scenario())


def test_cancelled_items_take_no_room_in_the_queue() -> None:
    async def scenario() -> None:
        network = Network()
        async with batching(network.run, max_queued=1) as batcher:
            first = await queue(batcher, 0)
            await network.wait_until_entered()
            gone = await queue(batcher, 2)
            gone.cancel()
            await asyncio.wait([gone])
            stays = await queue(batcher, 4)
            network.gate.set()
            await asyncio.gather(first, stays)
        assert network.batches == [[0], [4]]

    asyncio.run(scenario())


def test_drain_finishes_what_is_queued_and_takes_no_more() -> None:
    async def scenario() -> None:
        network = Network()
        async with batching(network.run) as batcher:
            first = await queue(batcher, 0)
            await network.wait_until_entered()
            second = await queue(batcher, 2)
            draining = asyncio.create_task(batcher.drain(PATIENCE_SECONDS))
            await asyncio.sleep(0)
            with pytest.raises(UnavailableError):
                await batcher.submit([4])
            network.gate.set()
            await draining
            assert values(await first) + values(await second) == [0, 4]

    asyncio.run(scenario())


def test_drain_that_takes_too_long_answers_every_waiter() -> None:
    async def scenario() -> None:
        network = Network()
        async with batching(network.run) as batcher:
            running = await queue(batcher, 0)
            await network.wait_until_entered()
            waiting = await queue(batcher, 2)
            await batcher.drain(0)
            for result in await asyncio.gather(running, waiting, return_exceptions=True):
                assert isinstance(result, UnavailableError)
            network.gate.set()

    asyncio.run(scenario())


# --- in the calling thread ----------------------------------------------------------------------


def agreed() -> None:
    """Nothing speaks against a run."""


def test_an_item_may_run_in_the_calling_thread() -> None:
    async def scenario() -> None:
        log, threads = Log(), list[str]()

        def run(items: Sequence[int]) -> list[int]:
            threads.append(threading.current_thread().name)
            return [item * item for item in items]

        async with batching(run, log=log) as batcher:
            assert batcher.run_here(7, agreed).result == 49
        assert threads == [threading.current_thread().name]
        assert log.batches == [(1, False)]

    asyncio.run(scenario())


def test_what_breaks_in_the_calling_thread_is_raised_there() -> None:
    async def scenario() -> None:
        network, log = Network(fails_on=3), Log()
        network.gate.set()
        async with batching(network.run, log=log) as batcher:
            with pytest.raises(InferenceError, match="the network failed") as caught:
                batcher.run_here(3, agreed)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert log.batches == [(1, True)]
        with pytest.raises(UnavailableError):
            batcher.run_here(4, agreed)

    asyncio.run(scenario())


def test_runs_in_calling_threads_count_among_the_workers() -> None:
    async def scenario() -> None:
        network = Network()
        async with batching(network.run, workers=1) as batcher:
            here = asyncio.create_task(asyncio.to_thread(batcher.run_here, 1, agreed))
            await network.wait_until_entered()
            queued = await queue(batcher, 2)
            await asyncio.sleep(0.05)
            assert network.batches == [[1]], "one at a time, whoever runs it"
            network.gate.set()
            assert (await here).result == 1
            assert values(await queued) == [4]

    asyncio.run(scenario())


def test_what_is_no_longer_wanted_when_its_turn_comes_does_not_run() -> None:
    async def scenario() -> None:
        network = Network()

        def refuse() -> None:
            raise UnavailableError("nobody waits")

        async with batching(network.run, workers=1) as batcher:
            running = await queue(batcher, 2)
            await network.wait_until_entered()
            late = asyncio.create_task(asyncio.to_thread(batcher.run_here, 1, refuse))
            await asyncio.sleep(0.05)
            network.gate.set()
            with pytest.raises(UnavailableError, match="nobody waits"):
                await late
            await running
        assert network.batches == [[2]]

    asyncio.run(scenario())
