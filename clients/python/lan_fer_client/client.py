"""The two clients: one that blocks, one for asyncio. Both may be shared, by threads or by tasks."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Sequence
from contextlib import aclosing, closing
from types import TracebackType
from typing import Literal, Self

import httpx

from lan_fer_client.calls import JSON, Call, Photo, predict_call
from lan_fer_client.deadlines import bounded, within
from lan_fer_client.errors import ProblemError
from lan_fer_client.models import ModelReply, PredictOptions, PredictReply, Problem, Status
from lan_fer_client.replies import Reading, answers, checked, parsed, picture
from lan_fer_client.retries import Outcome, Retries

DEFAULT_OPTIONS = PredictOptions()
DEFAULT_RETRIES = Retries()
DEFAULT_TIMEOUT = 60.0  # seconds; the service's own deadline is 30
PictureType = Literal["image/jpeg", "image/png"]
UNAVAILABLE = 503
# httpx's own time-outs, which say which step was late, come before asyncio's.
DEADLINE_SLACK = 0.1  # seconds


def _address(base_url: str) -> str:
    """Raises ValueError where it is none: nothing that is sent there could ever arrive."""
    if not re.match(r"https?://[^/]", base_url, re.IGNORECASE):
        raise ValueError(f"base_url is an address such as http://127.0.0.1:8000, not {base_url!r}")
    return base_url


def _headers(api_key: str | None) -> dict[str, str]:
    return {"X-API-Key": api_key} if api_key else {}


class Client:
    """Calls the service and waits.

    `timeout` is seconds for each attempt, from connecting to the end of the reply (the look-up of
    a name is the system's). `api_key` is for a service that asks for one. `http` is an httpx client
    of your own (proxies, certificates), which you close yourself; it then says the address and the
    headers, and its time-outs are httpx's: for each step, not for an attempt as a whole.

    Raises ValueError where `base_url` does not begin with http:// or https://.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: Retries = DEFAULT_RETRIES,
        http: httpx.Client | None = None,
    ) -> None:
        self._retries = retries
        self._own = http is None
        self._deadline = timeout if self._own else None
        self._http = http or bounded(
            httpx.Client(base_url=_address(base_url), headers=_headers(api_key), timeout=timeout)
        )

    def predict(self, photo: Photo, options: PredictOptions = DEFAULT_OPTIONS) -> PredictReply:
        """The faces in one photo: a path, or the bytes of an image file.

        Raises ProblemError, ConnectionFailedError, BadReplyError, OSError where a file cannot be
        read, and ValueError for a web address, which is not fetched.
        """
        return parsed(PredictReply, self._send(predict_call("/predict", [photo], options)))

    def predict_batch(
        self, photos: Sequence[Photo], options: PredictOptions = DEFAULT_OPTIONS
    ) -> list[PredictReply | Problem]:
        """A reply, or what is wrong, for each photo in order, in one call.

        Raises as predict, and TypeError for a photo that is not in a list.
        """
        call = predict_call("/predict/batch", photos, options)
        return answers(self._send(call), len(call.photos))

    def draw(
        self,
        photo: Photo,
        options: PredictOptions = DEFAULT_OPTIONS,
        *,
        media_type: PictureType = "image/jpeg",
    ) -> bytes:
        """The photo with everything drawn on it, as an image file. Raises as predict."""
        call = predict_call("/predict", [photo], options, accept=media_type)
        return picture(self._send(call), media_type)

    def model(self) -> ModelReply:
        """What is being served: labels, contract, licences. Raises as predict."""
        return parsed(ModelReply, self._send(Call("GET", "/model")))

    def is_ready(self) -> bool:
        """Whether it takes photos; asked once.

        Raises ConnectionFailedError without a reply, ProblemError and BadReplyError for another's.
        """
        return _is_ready(self._once(Call("GET", "/health/ready")))

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, call: Call) -> httpx.Response:
        for attempt in itertools.count(1):
            outcome = self._once(call)
            wait = self._retries.wait_after(attempt, outcome)
            if wait is None:
                break
            time.sleep(wait)
        return checked(outcome)

    def _once(self, call: Call) -> Outcome:
        request = call.build(self._http)
        try:
            with within(self._deadline), closing(self._http.send(request, stream=True)) as response:
                reading = Reading(call, response)
                if reading.is_plain:
                    for piece in response.iter_bytes():
                        reading.add(piece)
                return reading.done()
        except httpx.RequestError as error:
            return error
        except httpx.InvalidURL as error:
            return _lost(error)


class AsyncClient:
    """As Client, for asyncio: every method but the constructor is awaited."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: Retries = DEFAULT_RETRIES,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._retries = retries
        self._own = http is None
        self._deadline = timeout + DEADLINE_SLACK if self._own else None
        self._http = http or httpx.AsyncClient(
            base_url=_address(base_url), headers=_headers(api_key), timeout=timeout
        )

    async def predict(
        self, photo: Photo, options: PredictOptions = DEFAULT_OPTIONS
    ) -> PredictReply:
        """As Client.predict."""
        return parsed(PredictReply, await self._send(await _call("/predict", [photo], options)))

    async def predict_batch(
        self, photos: Sequence[Photo], options: PredictOptions = DEFAULT_OPTIONS
    ) -> list[PredictReply | Problem]:
        """As Client.predict_batch."""
        call = await _call("/predict/batch", photos, options)
        return answers(await self._send(call), len(call.photos))

    async def draw(
        self,
        photo: Photo,
        options: PredictOptions = DEFAULT_OPTIONS,
        *,
        media_type: PictureType = "image/jpeg",
    ) -> bytes:
        """As Client.draw."""
        call = await _call("/predict", [photo], options, accept=media_type)
        return picture(await self._send(call), media_type)

    async def model(self) -> ModelReply:
        """As Client.model."""
        return parsed(ModelReply, await self._send(Call("GET", "/model")))

    async def is_ready(self) -> bool:
        """As Client.is_ready."""
        return _is_ready(await self._once(Call("GET", "/health/ready")))

    async def close(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, call: Call) -> httpx.Response:
        for attempt in itertools.count(1):
            outcome = await self._once(call)
            wait = self._retries.wait_after(attempt, outcome)
            if wait is None:
                break
            await asyncio.sleep(wait)
        return checked(outcome)

    async def _once(self, call: Call) -> Outcome:
        request = call.build(self._http)
        try:
            async with (
                asyncio.timeout(self._deadline),
                aclosing(await self._http.send(request, stream=True)) as response,
            ):
                reading = Reading(call, response)
                if reading.is_plain:
                    async for piece in response.aiter_bytes():
                        reading.add(piece)
                return reading.done()
        except TimeoutError:
            return httpx.ReadTimeout("timed out", request=request)
        except httpx.RequestError as error:
            return error
        except httpx.InvalidURL as error:
            return _lost(error)


async def _call(
    path: str, photos: Sequence[Photo], options: PredictOptions, *, accept: str = JSON
) -> Call:
    # Files are read on a thread: a slow disk must not hold the event loop.
    return await asyncio.to_thread(predict_call, path, photos, options, accept=accept)


def _lost(error: httpx.InvalidURL) -> httpx.RequestError:
    # httpx looks at where a redirect leads even though it does not go there.
    return httpx.RequestError(f"the address redirects to one that is none: {error}")


def _is_ready(outcome: Outcome) -> bool:
    try:
        return parsed(Status, checked(outcome)).status == "ready"
    except ProblemError as error:
        if error.problem.status == UNAVAILABLE:
            return False
        raise
