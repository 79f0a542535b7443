"""Notices work that hangs: what blocks runs under a watch, which knows since when."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# Of 19: with cores enough for all it changes nothing.
WORKER_NICENESS = 10

P = ParamSpec("P")
Result = TypeVar("Result")


class StageWatch:
    """The runs of blocking work that are under way; for any thread.

    With `give_way`, threads that run it leave the CPU to the event loop when both want it (Linux):
    under overload the service goes on answering, refusals and health checks above all.
    """

    def __init__(self, *, give_way: bool = False) -> None:
        self._runs: dict[object, tuple[str, float]] = {}
        self._give_way = give_way
        self._thread = threading.local()

    def watched(self, stage: str, work: Callable[P, Result]) -> Callable[P, Result]:
        """`work`, whose calls are runs of `stage`."""

        def run(*args: P.args, **kwargs: P.kwargs) -> Result:
            if self._give_way and not hasattr(self._thread, "gave_way"):
                self._thread.gave_way = True
                _lower_priority()
            key = object()
            self._runs[key] = (stage, time.monotonic())
            try:
                return work(*args, **kwargs)
            finally:
                del self._runs[key]

        return run

    def hung(self, limit_seconds: float) -> str | None:
        """The stage of the oldest run that takes longer than the limit, None where none does."""
        runs = list(self._runs.values())  # one step: other threads change it meanwhile
        stage, since = min(runs, key=lambda run: run[1], default=("", float("inf")))
        return stage if time.monotonic() - since > limit_seconds else None


class WatchedPool(ThreadPoolExecutor):
    """A pool of threads whose work runs under a watch, as one stage."""

    def __init__(self, workers: int, *, watch: StageWatch, stage: str) -> None:
        super().__init__(workers, thread_name_prefix=stage)
        self._watch = watch
        self._stage = stage

    def submit(
        self, fn: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[Result]:
        """See Executor.submit."""
        return super().submit(self._watch.watched(self._stage, fn), *args, **kwargs)


def _lower_priority() -> None:
    if sys.platform == "linux":  # where each thread has a priority of its own
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + WORKER_NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))
