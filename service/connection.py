"""One client's connection: uvicorn's HTTP protocol with the limits that it lacks.

A connection is either waiting for its client (between requests, in a head, in a body) or its client
is waiting for it. `check`, called several times a second, ends what has waited too long. A
connection never ends so that bytes still under way destroy a reply: it says that it sends no more,
takes what comes for a moment, and only then closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.errors import (
    HeadersTooLargeError,
    MalformedRequestError,
    ProblemError,
    SlowRequestError,
    UnavailableError,
)
from service.metrics import Metrics
from service.middleware import REQUEST_ID_HEADER, own_request_id, request_id_of
from service.patience import Patience
from service.plain_heads import PlainHead
from service.polite_transport import PoliteTransport
from service.prepared import PreparedReply
from service.settings import Settings
from service.shedding import Shedder

REQUEST_ID_FIELD = REQUEST_ID_HEADER.lower().encode()
# Heads a little over the setting's limit are answered by the app, with a line in its log.
HEAD_SLACK_BYTES = 64 * 1024
# Of a body's framing: a body in chunks of a few bytes costs more work than it carries.
MAX_FRAMING_BYTES = 1024 * 1024
MAX_PIPELINED = 16
MAX_UNREAD_BYTES = 64 * 1024  # of refusals
MAX_ADDRESS_BYTES = 65_535  # that the parser of addresses takes
# How long a connection takes bytes after it has said that it sends no more.
LINGER_SECONDS = 2.0
# How long an idle connection is kept for one more request once the service stops. A client asks
# again where one that was used before has ended, but not where its first request was lost.
LAST_CALL_SECONDS = 2.0
FIRST_CALL_SECONDS = 5.0
# What makes way for a new connection when there are too many: an unfinished request this old, and a
# connection idle for so long. One that was idle for less may have its next request under way.
MAKES_WAY_SECONDS = 5.0
IDLE_MAKES_WAY_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 0.1  # after nobody was found who could go
NEWCOMERS_PAUSES = 5  # one that comes and goes costs several refusals on an open connection


@dataclass(frozen=True)
class ConnectionLimits:
    """See the settings of the same names."""

    max_connections: int
    idle_seconds: float
    head_seconds: float
    stall_seconds: float
    max_head_bytes: int
    max_body_bytes: int
    max_unsent_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """The settings' limits."""
        return cls(
            max_connections=settings.max_connections,
            idle_seconds=settings.idle_timeout_ms / 1000,
            head_seconds=settings.header_timeout_ms / 1000,
            stall_seconds=settings.stall_timeout_ms / 1000,
            max_head_bytes=settings.max_header_bytes + HEAD_SLACK_BYTES,
            max_body_bytes=settings.max_body_bytes,
            max_unsent_bytes=settings.max_in_flight_bytes,
        )


class Config(uvicorn.Config):
    """uvicorn's configuration, with what `Connection` needs."""

    def __init__(
        self,
        app: FastAPI,
        *,
        settings: Settings,
        metrics: Metrics,
        shedder: Shedder | None = None,
    ) -> None:
        super().__init__(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.drain_seconds,
        )
        self.limits = ConnectionLimits.of(settings)
        # Of all connections, so that a crowd of newcomers need not look through them each time:
        self.leaving: dict[Connection, None] = {}  # the one that has left for longest comes first
        self.turned_away: dict[Connection, None] = {}  # newcomers that are about to be told so
        self.nobody_goes_until = 0.0  # by the event loop's clock
        self.metrics = metrics
        self.shedder = shedder


class _Answered:
    """In place of uvicorn's cycle, for a request that has its whole answer already."""

    response_started = response_complete = True
    keep_alive = True

    def __init__(self) -> None:
        self.disconnected = False
        self.message_event = asyncio.Event()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with limits on time, bytes and number, and problems for bad HTTP."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._config = config
        self._limits = config.limits
        self._refusals = config.metrics.refusals
        self._shedder = config.shedder
        self._leaving = False
        self._draining = False
        self._in_head = False
        self._message_complete = True
        self._bytes_beside_body = 0
        self._body_bytes = 0
        self._at_once = 0  # refusals since the last bytes came
        self._photo: object | None = None  # that is on its way to the app; see Shedder
        self._unwanted = 0  # bytes still to come of a body that was turned away unparsed
        self._broken: ProblemError | None = None
        self._unsent = 0
        self._moved_at = self.loop.time()
        self._patience = Patience()

    # --- what the server asks ---------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """Bytes of replies that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    def check(self, now: float, stall_seconds: float) -> None:
        """End the connection where its client has been too slow; `now` is the loop's time.

        `stall_seconds` is how long it may take nothing of a reply.
        """
        unsent = self.unsent_bytes
        if unsent == 0 or unsent < self._unsent:
            self._moved_at = now
        self._unsent = unsent
        if now - self._moved_at > stall_seconds:
            self._refusals.labels("slow-reader").inc()
            self.transport.abort()
        else:
            self._patience.check(now)

    def shutdown(self) -> None:
        """The server stops: whoever has a request under way gets an answer, then it is over."""
        self._draining = True
        if self._busy:
            self.cycle.keep_alive = False
        elif not self._in_head and not self._leaving:
            fresh = self.cycle is None
            self._wait(FIRST_CALL_SECONDS if fresh else LAST_CALL_SECONDS, self.leave)

    def leave(self) -> None:
        """Send no more, take what is still under way for a moment, then close."""
        if self.transport.is_closing() or self._leaving:
            return
        self._replies.flush()
        self.transport.write_eof()
        self.flow.resume_reading()
        self._wait(LINGER_SECONDS, self._close)
        self._leaving = True
        self._config.turned_away.pop(self, None)
        self._config.leaving[self] = None

    # --- asyncio's events -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._replies = PoliteTransport(transport, self.leave, self.loop)
        self._wait(self._limits.idle_seconds, self.leave)
        self._make_room()

    def eof_received(self) -> None:
        """The client sends no more, and the connection is about to be closed for it."""
        self._replies.flush()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, from either side."""
        self._patience.stop()
        self._photo_is_over()
        self._config.turned_away.pop(self, None)
        self._config.leaving.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._at_once = 0
        if self._leaving or self._broken is not None or self in self._config.turned_away:
            return
        if self._shedder is not None and not (data := self._shed(self._shedder, data)):
            return
        self._bytes_beside_body += len(data)
        self._feed(data)
        if self._bytes_beside_body > self._limits.max_head_bytes and self._in_head:
            self._refuse(HeadersTooLargeError("The headers do not end."))
        elif self._bytes_beside_body > MAX_FRAMING_BYTES:
            self._refuse(MalformedRequestError("The body comes in chunks that are too small."))

    def _shed(self, shedder: Shedder, data: bytes) -> bytes:
        """Turn photos away for which there is no room, unparsed; what of the bytes is left."""
        while data:
            head_bytes = 0
            if not self._unwanted:
                if self._leaving:
                    return b""
                if (plain := self._refusable(shedder, data)) is None:
                    return data
                head_bytes, self._unwanted = plain.head_bytes, plain.body_bytes
                self._message_complete = False
                self._answer_at_once(shedder.reply, own_request_id(), stays=True)
            taken = min(len(data) - head_bytes, self._unwanted)
            self._unwanted -= taken
            data = data[head_bytes + taken :]
            if not self._unwanted:
                self._message_complete = True
                self._wait(self._limits.idle_seconds, self.leave)
                self._pace()
        return data

    def _refusable(self, shedder: Shedder, data: bytes) -> PlainHead | None:
        """The head that `data` begins with, where it is turned away unparsed; it is counted."""
        if not (self._message_complete and shedder.is_shedding) or self._busy or self._draining:
            return None
        plain = PlainHead.of(data)
        if plain is None or plain.body_bytes > self._limits.max_body_bytes:
            return None
        return plain if shedder.note_refusal(plain.path) else None

    def _feed(self, data: bytes) -> None:
        """What uvicorn does with bytes, but that no client is let into another protocol."""
        self._unset_keepalive_if_required()
        for _ in range(MAX_PIPELINED):
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                message = "Invalid HTTP request received."
                self.logger.warning(message)
                self.send_400_response(message)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
                continue
            return
        self._refuse(MalformedRequestError("Too many wishes for another protocol at once."))

    def _without_upgrade(self, rest: bytes) -> bytes:
        """A request that asks for another protocol as if it did not; `rest` is what follows it.

        Java's client asks each server for HTTP/2 like this. The parser that has seen the wish takes
        what follows for that protocol.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return b"\r\n".join((*lines, b"", rest))

    # --- the parser's events ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request line begins."""
        self._bytes_beside_body = 0
        self._body_bytes = 0
        self._in_head = True
        self._message_complete = False
        super().on_message_begin()
        self._wait(self._limits.head_seconds, self._late_head)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, without the white space that may end its line; trailers are passed over."""
        if not self._in_head:
            return
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head is there: the app begins to work, or it waits for earlier requests."""
        if self._leaving:  # what came in the same piece as the bytes that ended it
            self._in_head = False
            return
        # The app minds how long a body takes; what is not read by then is discarded below.
        self._patience.wait_without_end(self.loop.time())
        if (fault := self._fault_of_head()) is not None:
            self._refuse(fault)
            raise fault  # the parser goes no further
        if self.parser.should_upgrade():  # it comes again, see _without_upgrade
            return
        method = self.parser.get_method()
        shedder = None if self._busy else self._shedder  # what waits for another is the app's
        if shedder is not None and shedder.refuses(method, self.url):
            self._in_head = False
            given = next((v for k, v in self.headers if k == REQUEST_ID_FIELD), b"")
            # A client that waits for "100 Continue" may send its body after a refusal, or not.
            stays = self.parser.should_keep_alive() and not (
                self.expect_100_continue or self._draining
            )
            request_id = request_id_of(given.decode("latin-1"))
            self._answer_at_once(shedder.reply, request_id, stays=stays)
            return
        # "100 Continue" is not known to HTTP/1.0 (RFC 9110, 10.1.1).
        self.expect_100_continue &= self.parser.get_http_version() != "1.0"
        super().on_headers_complete()  # raises where the address can't be read
        self._in_head = False
        if shedder is not None:
            self._photo = shedder.let_through(method, self.url)
        self.cycle.transport = self._replies
        if self._draining or self.expect_100_continue:
            # A client that waits for "100 Continue" may send its body after a refusal, or not.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        if self._leaving:
            return
        self._bytes_beside_body -= len(body)
        self._body_bytes += len(body)
        if self.cycle.response_complete and self._body_bytes > self._limits.max_body_bytes:
            self.leave()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole."""
        if self.parser.should_upgrade():
            return
        self._message_complete = True
        if self._leaving:
            return
        self._patience.stop()
        super().on_message_complete()
        if self._shedder is not None and self._photo is not None:
            self._shedder.has_arrived(self._photo)
            self._photo = None
        if self.cycle.response_complete:
            self._wait(self._limits.idle_seconds, self.leave)
        if isinstance(self.cycle, _Answered):
            self._pace()

    def on_response_complete(self) -> None:
        """The reply has been written, though it need not have been sent."""
        self._photo_is_over()
        if self._leaving:
            return
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if self._busy or self._in_head or self.transport.is_closing():
            return
        if self._message_complete:
            self._wait(self._limits.idle_seconds, self.leave)
        else:
            self._wait(self._limits.stall_seconds, self.leave)

    def send_400_response(self, msg: str) -> None:
        """Called for bytes that are no HTTP request."""
        self._refuse(MalformedRequestError(msg))

    # --- within -----------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    @property
    def _awaits_reply(self) -> bool:
        """Whether a reply written now would be taken for the one to what came last."""
        if self._message_complete or self._in_head:
            return not self._busy
        return not (self.cycle.response_started or self.pipeline)

    def _wait(self, seconds: float, on_late: Callable[[], None]) -> None:
        """Wait for the client, until `on_late` is called; once it leaves, nothing moves its end."""
        if not self._leaving:
            self._patience.wait(self.loop.time(), seconds, on_late)

    def _answer_at_once(self, reply: PreparedReply, request_id: str, *, stays: bool) -> None:
        """Answer a request's head in the app's place; the body that follows is discarded."""
        if not isinstance(self.cycle, _Answered):
            self.cycle = _Answered()  # type: ignore[assignment]
        # Refusals are cheap, but kept they take more than what they answer: a client that asks on
        # without reading them is told no more.
        self._at_once += 1
        stays &= self._at_once <= MAX_PIPELINED and self.unsent_bytes <= MAX_UNREAD_BYTES
        dated = self.server_state.default_headers
        self._replies.flush()  # of earlier requests
        self.transport.write(reply.to(request_id, dated, close=not stays))
        if stays:  # once for the body that follows: it may not drip
            self._wait(self._limits.stall_seconds, self.leave)
        else:
            self.leave()

    def _photo_is_over(self) -> None:
        """Where one was arriving: its answer is there before its body, or its client is gone."""
        if self._shedder is not None and self._photo is not None:
            self._shedder.forget(self._photo)
            self._photo = None

    def _pace(self) -> None:
        """Read no more for a while from a client that has been refused and has sent its body."""
        if self._shedder is not None and (pause := self._shedder.pacer.pause_seconds):
            self.flow.pause_reading()
            self.loop.call_later(pause, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _fault_of_head(self) -> ProblemError | None:
        """What is wrong with a head that could be parsed."""
        if self._busy and len(self.pipeline) >= MAX_PIPELINED:
            return MalformedRequestError("Too many requests were sent before their answers.")
        if self.parser.get_method() == b"CONNECT":
            return MalformedRequestError("This is no proxy: CONNECT is not served.")
        if len(self.url) > MAX_ADDRESS_BYTES:
            return HeadersTooLargeError("The address is too long.")
        names = [name for name, _ in self.headers]
        is_old = self.parser.get_http_version() == "1.0"
        if is_old and b"transfer-encoding" in names:
            return MalformedRequestError("HTTP/1.0 has no Transfer-Encoding (RFC 9112, 6.1).")
        hosts = names.count(b"host")
        if hosts > 1 or not (hosts or is_old):
            return MalformedRequestError("There must be one Host header (RFC 9112, 3.2).")
        return None

    def _late_head(self) -> None:
        if self._busy:  # this head is behind a request that is being answered
            self._wait(self._limits.head_seconds, self._late_head)
            return
        self._refuse(SlowRequestError("The request's headers did not arrive in time."))

    def _close(self) -> None:
        self.transport.close()

    def _refuse(self, error: ProblemError) -> None:
        """Answer in the app's place and end the connection."""
        if self._leaving or self._broken is not None or self.transport.is_closing():
            return
        self._refusals.labels(error.slug).inc()
        if self._busy and (self._message_complete or self._in_head):
            # The fault comes after a request that is whole: that one gets its answer first.
            self._broken = error
            self.cycle.keep_alive = False
            return
        if self._busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._awaits_reply:
            self._replies.write(PreparedReply(error).to(own_request_id()))
        self.leave()

    def _make_room(self) -> None:
        """Hold the number of connections: the one that has waited longest for its client goes."""
        leaving, limit = self._config.leaving, self._limits.max_connections
        if len(self.connections) - len(leaving) - len(self._config.turned_away) <= limit:
            return
        if len(self.connections) > 2 * limit:
            # Of those that have their last reply, the one that has had it for longest.
            oldest = next(iter(leaving), self)
            oldest.transport.abort()
            if oldest is self:
                return
        now = self.loop.time()
        if now >= self._config.nobody_goes_until:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c._can_go(now)]
            if waiting:
                min(waiting, key=lambda c: c._patience.since or now)._make_way()
                return
            self._config.nobody_goes_until = now + LOOK_AGAIN_SECONDS
        self._turn_away(UnavailableError("There are too many connections."))

    def _turn_away(self, error: ProblemError) -> None:
        """Refuse a newcomer; later, where many come back at once."""
        pause = 0.0 if self._shedder is None else self._shedder.pacer.pause_seconds
        if not pause:
            self._refuse(error)
            return
        waiting = self._config.turned_away
        waiting[self] = None
        self.loop.call_later(NEWCOMERS_PAUSES * pause, self._refuse, error)
        # The rest of the room is for those that have their last reply: nobody is aborted before.
        limit = self._limits.max_connections
        if len(waiting) > limit - max(1, limit // 8):
            next(iter(waiting))._refuse(error)

    def _can_go(self, now: float) -> bool:
        since = self._patience.since
        gone = self._leaving or self in self._config.turned_away
        if since is None or self.pipeline or gone:
            return False
        idle = self._message_complete and not self._busy
        enough = IDLE_MAKES_WAY_SECONDS if idle else MAKES_WAY_SECONDS
        return now - since >= enough

    def _make_way(self) -> None:
        if self._message_complete:
            self.leave()
        else:
            self._refuse(SlowRequestError("The request came too slowly while others waited."))
