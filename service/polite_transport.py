"""What replies are written to, between uvicorn and the transport of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class PoliteTransport(asyncio.Transport):
    """What replies are written to; closing it closes the connection politely.

    What is written in one turn of the loop goes out together: head and body of a reply then take
    one call of the system, and wake the client once.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        close: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._close = close
        self._loop = loop
        self._pieces: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.WriteTransport."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)

    def flush(self) -> None:
        """Send what was written."""
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.writelines(pieces)

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Let the connection end politely."""
        self._close()
