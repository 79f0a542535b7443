"""Waiting for an answer no longer than the client does, and no longer than the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.errors import DeadlineExceededError

Result = TypeVar("Result")


async def answer_in_time(
    request: Request, work: Coroutine[Any, Any, Result], *, deadline_ms: int | None
) -> Result:
    """The result of `work`, which is cancelled when it is late or when the client hangs up.

    Without a `deadline_ms`, `work` minds its own. The request's body must have been read. Raises
    DeadlineExceededError, ClientDisconnect and whatever `work` raises.
    """
    timeout = None if deadline_ms is None else deadline_ms / 1000
    task = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_wait_for_hang_up(request))
    try:
        await asyncio.wait({task, hang_up}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if hang_up.done():
            raise ClientDisconnect
        raise DeadlineExceededError(f"The answer was not ready within {deadline_ms} ms.")
    finally:
        task.cancel()
        hang_up.cancel()
        # Both have let go of what they hold before the caller gives its permit back.
        await asyncio.gather(task, hang_up, return_exceptions=True)
        del task, hang_up  # an error of the work holds this frame, which would hold the error


async def _wait_for_hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
