"""The two clients: one that blocks, one for asyncio. Both may be shared, by threads or by tasks."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

import httpx

from lan_fer_client.calls import Call, Photo, answers, checked, predict_call
from lan_fer_client.errors import ProblemError
from lan_fer_client.models import ModelReply, PredictOptions, PredictReply, Problem
from lan_fer_client.retries import Retries

DEFAULT_OPTIONS = PredictOptions()
DEFAULT_RETRIES = Retries()
DEFAULT_TIMEOUT = 60.0  # seconds; the service's own deadline is 30
PictureType = Literal["image/jpeg", "image/png"]
UNAVAILABLE = 503


def _address(base_url: str) -> str:
    """Raises ValueError where it is none: nothing that is sent there could ever arrive."""
    if not re.match(r"https?://[^/]", base_url, re.IGNORECASE):
        raise ValueError(f"base_url is an address such as http://127.0.0.1:8000, not {base_url!r}")
    return base_url


def _headers(api_key: str | None) -> dict[str, str]:
    return {"X-API-Key": api_key} if api_key else {}


class Client:
    """Calls the service and waits.

    `timeout` is seconds for each attempt: to connect, and between two pieces of a reply. `api_key`
    is for a service that asks for one. `http` is an httpx client of your own (proxies,
    certificates), which you close yourself; it then says the address, time-out and headers.

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
        self._http = http or httpx.Client(
            base_url=_address(base_url), headers=_headers(api_key), timeout=timeout
        )

    def predict(self, photo: Photo, options: PredictOptions = DEFAULT_OPTIONS) -> PredictReply:
        """The faces in one photo: a path, or the bytes of an image file.

        Raises ProblemError, ConnectionFailedError, OSError where a file cannot be read, and
        ValueError for a web address, which is not fetched.
        """
        response = self._send(predict_call("/predict", [photo], options))
        return PredictReply.model_validate_json(response.content)

    def predict_batch(
        self, photos: Sequence[Photo], options: PredictOptions = DEFAULT_OPTIONS
    ) -> list[PredictReply | Problem]:
        """A reply, or what is wrong, for each photo in order, in one call.

        Raises as predict, and TypeError for a photo that is not in a list.
        """
        return answers(self._send(predict_call("/predict/batch", photos, options)))

    def draw(
        self,
        photo: Photo,
        options: PredictOptions = DEFAULT_OPTIONS,
        *,
        media_type: PictureType = "image/jpeg",
    ) -> bytes:
        """The photo with everything drawn on it, as an image file. Raises as predict."""
        call = predict_call("/predict", [photo], options, accept=media_type)
        return self._send(call).content

    def model(self) -> ModelReply:
        """What is being served: labels, contract, licences. Raises as predict."""
        return ModelReply.model_validate_json(self._send(Call("GET", "/model")).content)

    def is_ready(self) -> bool:
        """Whether it takes photos; asked once. Raises ConnectionFailedError without a reply."""
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

    def _once(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.send(call.build(self._http))
        except httpx.TransportError as error:
            return error


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
        self._http = http or httpx.AsyncClient(
            base_url=_address(base_url), headers=_headers(api_key), timeout=timeout
        )

    async def predict(
        self, photo: Photo, options: PredictOptions = DEFAULT_OPTIONS
    ) -> PredictReply:
        """As Client.predict."""
        response = await self._send(await _call("/predict", [photo], options))
        return PredictReply.model_validate_json(response.content)

    async def predict_batch(
        self, photos: Sequence[Photo], options: PredictOptions = DEFAULT_OPTIONS
    ) -> list[PredictReply | Problem]:
        """As Client.predict_batch."""
        return answers(await self._send(await _call("/predict/batch", photos, options)))

    async def draw(
        self,
        photo: Photo,
        options: PredictOptions = DEFAULT_OPTIONS,
        *,
        media_type: PictureType = "image/jpeg",
    ) -> bytes:
        """As Client.draw."""
        call = await _call("/predict", [photo], options, accept=media_type)
        return (await self._send(call)).content

    async def model(self) -> ModelReply:
        """As Client.model."""
        response = await self._send(Call("GET", "/model"))
        return ModelReply.model_validate_json(response.content)

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

    async def _once(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.send(call.build(self._http))
        except httpx.TransportError as error:
            return error


async def _call(
    path: str, photos: Sequence[Photo], options: PredictOptions, *, accept: str = "application/json"
) -> Call:
    # Files are read on a thread: a slow disk must not hold the event loop.
    return await asyncio.to_thread(predict_call, path, photos, options, accept=accept)


def _is_ready(outcome: httpx.Response | httpx.TransportError) -> bool:
    try:
        checked(outcome)
    except ProblemError as error:
        if error.problem.status == UNAVAILABLE:
            return False
        raise
    return True
