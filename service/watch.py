"""Notices work that hangs: what blocks runs under a watch, which knows since when."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


class StageWatch:
    """The runs of blocking work that are under way; for any thread."""

    def __init__(self) -> None:
        self._runs: dict[object, tuple[str, float]] = {}

    def watched(self, stage: str, work: Callable[P, Result]) -> Callable[P, Result]:
        """`work`, whose calls are runs of `stage`."""

        def run(*args: P.args, **kwargs: P.kwargs) -> Result:
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
