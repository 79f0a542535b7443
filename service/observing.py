"""What the pipeline tells of its work: to the metrics, or in an engine's process to a journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

Stage = Literal["receive", "decode", "detect", "classify", "queue", "render", "total"]
Network = Literal["detector", "classifier"]
NETWORKS: tuple[Network, ...] = ("detector", "classifier")


@dataclass(frozen=True)
class Load:
    """What is waiting and what is held, at one moment."""

    waiting_photos: int = 0
    queued: Mapping[Network, int] = field(default_factory=dict)
    """Looks at images, or faces, that wait for a batch."""
    pixels: int = 0
    """Decoded pixels that are held."""

    def __add__(self, other: Load) -> Load:
        return Load(
            self.waiting_photos + other.waiting_photos,
            {n: self.queued.get(n, 0) + other.queued.get(n, 0) for n in NETWORKS},
            self.pixels + other.pixels,
        )


class BatchObserver(Protocol):
    """Told about every batch of one network, from the thread that ran it."""

    def batch_finished(self, size: int, seconds: float, *, failed: bool) -> None:
        """`size` items were run in `seconds`."""


class Observer(Protocol):
    """Told of the pipeline's work, from any thread."""

    def photo_read(
        self,
        seconds: Mapping[Stage, float],
        faces_found: int,
        faces: Sequence[tuple[str, float]],
    ) -> None:
        """A photo was read: time in each stage; label and probability of each face that was."""

    def batches_of(self, network: Network) -> BatchObserver:
        """The observer of one network's batches."""


class PhotoNote(NamedTuple):
    """See Observer.photo_read."""

    seconds: Mapping[Stage, float]
    faces_found: int
    faces: Sequence[tuple[str, float]]


class BatchNote(NamedTuple):
    """See BatchObserver.batch_finished."""

    network: Network
    size: int
    seconds: float
    failed: bool


Note = PhotoNote | BatchNote


class Journal:
    """An observer that keeps what it is told until it is taken."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque()

    def photo_read(
        self,
        seconds: Mapping[Stage, float],
        faces_found: int,
        faces: Sequence[tuple[str, float]],
    ) -> None:
        """See Observer."""
        self._notes.append(PhotoNote(dict(seconds), faces_found, faces))

    def batches_of(self, network: Network) -> BatchObserver:
        """See Observer."""
        return _NetworkJournal(self._notes, network)

    def take(self) -> tuple[Note, ...]:
        """Everything since the last time, in order."""
        # One by one: other threads add to it meanwhile.
        return tuple(self._notes.popleft() for _ in range(len(self._notes)))


class _NetworkJournal:
    def __init__(self, notes: deque[Note], network: Network) -> None:
        self._notes = notes
        self._network = network

    def batch_finished(self, size: int, seconds: float, *, failed: bool) -> None:
        self._notes.append(BatchNote(self._network, size, seconds, failed))


def replay(notes: Sequence[Note], observer: Observer) -> None:
    """Tell `observer` what a journal holds."""
    for note in notes:
        if isinstance(note, PhotoNote):
            observer.photo_read(note.seconds, note.faces_found, note.faces)
        else:
            batches = observer.batches_of(note.network)
            batches.batch_finished(note.size, note.seconds, failed=note.failed)
