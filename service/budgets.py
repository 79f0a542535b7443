"""Memory in flight: how many bytes of bodies and replies, and how many decoded pixels, at a time.

The number of images alone does not bound memory: one may be a thousand times as large as another.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import OverloadedError

# How often a thread that waits for room asks whether somebody still waits for it.
LOOK_SECONDS = 0.1


class NoRoomError(Exception):
    """A photo does not fit now; its task waits with `Room.wait_for`. Never leaves the app."""

    def __init__(self, pixels: int) -> None:
        super().__init__(f"no room for {pixels} pixels")
        self.pixels = pixels


class ByteBudget:
    """Bytes of request bodies that are held, and of replies not yet sent. For the event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._unsent: Callable[[], int] = lambda: 0

    @property
    def held(self) -> int:
        """Bytes of bodies held now."""
        return self._held

    def count_replies(self, unsent: Callable[[], int]) -> None:
        """From now on, the bytes that `unsent` tells count as well."""
        self._unsent = unsent

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes so many bytes more; the block's end gives all of them back.

        The function raises OverloadedError where they do not fit beside what others hold: a client
        that is told to try again costs less than one whose body is kept waiting.
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            others = self._held - mine + self._unsent()
            if others and others + mine + count > self._capacity:
                raise OverloadedError("Bodies and replies in flight hold as many bytes as may be.")
            self._held += count
            mine += count

        try:
            yield take
        finally:
            self._held -= mine


class PixelBudget:
    """Decoded pixels in memory; who does not fit waits, first come, first served.

    A photo larger than the whole budget is let in when it is alone.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._waiters: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Pixels taken now."""
        return self._used

    @contextmanager
    def room(self) -> Iterator[Room]:
        """Room for one photo, given back at the block's end. Use it on the event loop."""
        room = Room(self)
        try:
            yield room
        finally:
            self._close(room)

    def try_take(self, room: Room, pixels: int) -> bool:
        """Take them for `room` where they fit and nobody waits; on any thread."""
        with self._lock:
            if room.closed or self._waiters or not self._fits(pixels):
                return False
            self._used += pixels
            room.pixels += pixels
            return True

    async def take(self, room: Room, pixels: int) -> None:
        """Wait until they fit, and take them for `room`."""
        waiter = _Waiter(room, pixels, asyncio.get_running_loop().create_future())
        with self._lock:
            self._waiters.append(waiter)
            self._admit()
        try:
            await waiter.future
        finally:
            with self._lock:
                if waiter in self._waiters:  # cancelled
                    self._waiters.remove(waiter)
                    self._admit()

    def _fits(self, pixels: int) -> bool:
        return self._used == 0 or self._used + pixels <= self._capacity

    def _close(self, room: Room) -> None:
        with self._lock:
            room.closed = True
            self._used -= room.pixels
            self._admit()

    def _admit(self) -> None:
        """Let in who waits, as long as there is room; the lock is held."""
        while self._waiters and self._fits(self._waiters[0].pixels):
            waiter = self._waiters.popleft()
            self._used += waiter.pixels
            waiter.room.pixels += waiter.pixels
            if not waiter.future.done():
                waiter.future.set_result(None)


class LanePixels:
    """Decoded pixels of threads that keep a photo to its end, and so may wait for each other.

    First come, first served; who is larger than the whole budget is let in when it is alone.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Pixels taken now."""
        return self._used

    def try_take(self, pixels: int) -> bool:
        """Take them where they fit and nobody waits."""
        with self._changed:
            fits = not self._queue and self._fits(pixels)
            self._used += pixels if fits else 0
            return fits

    def take(self, pixels: int, require: Callable[[], None]) -> None:
        """Wait until they fit, and take them; `require` is called meanwhile, and may raise."""
        me = object()
        with self._changed:
            self._queue.append(me)
            try:
                while self._queue[0] is not me or not self._fits(pixels):
                    self._changed.wait(LOOK_SECONDS)
                    require()
                self._used += pixels
            finally:
                self._queue.remove(me)
                self._changed.notify_all()

    def give_back(self, pixels: int) -> None:
        """Let others have them."""
        with self._changed:
            self._used -= pixels
            self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        return self._used == 0 or self._used + pixels <= self._capacity


class Room:
    """The pixels that one photo has taken of a PixelBudget."""

    def __init__(self, budget: PixelBudget) -> None:
        self._budget = budget
        self.pixels = 0
        self.closed = False
        """Its photo is no longer wanted."""

    def require(self, pixels: int) -> None:
        """Take them at once, on any thread. Raises NoRoomError."""
        if not self._budget.try_take(self, pixels):
            raise NoRoomError(pixels)

    async def wait_for(self, pixels: int) -> None:
        """Wait until there is room, on the event loop."""
        await self._budget.take(self, pixels)


@dataclass(eq=False)
class _Waiter:
    room: Room
    pixels: int
    future: asyncio.Future[None]
