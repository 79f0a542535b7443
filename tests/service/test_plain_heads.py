"""Heads that are understood without a parser mean to it what they mean to us."""

from __future__ import annotations

import random

import httptools
import pytest

from service.plain_heads import MAX_HEAD_BYTES, PlainHead

HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\nUser-Agent: x/1 (y)\r\n"
    b"Content-Type: image/jpeg\r\nContent-Length: 5\r\n\r\n"
)


def with_line(line: bytes) -> bytes:
    return HEAD.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        HEAD.replace(b"Content-Length", b"content-length"),
        with_line(b"Connection: keep-alive"),
        with_line(b"connection: Keep-Alive"),
        with_line(b"Accept-Encoding: gzip, deflate, br"),
        with_line(b"X-Empty-Is-Not-Plain: but this is"),
    ],
)
def test_what_most_clients_send_is_plain(head: bytes) -> None:
    assert PlainHead.of(head + b"photo") == PlainHead(b"/predict", len(head), 5)


def test_what_a_proxy_would_mind_is_parsed() -> None:
    """The parser takes it for Connection, and the request then is the last one."""
    assert PlainHead.of(with_line(b"Proxy-Connection: close") + b"photo") is None


def test_options_are_no_part_of_the_path() -> None:
    plain = PlainHead.of(HEAD.replace(b"/predict", b"/predict/batch?explain=evidence"))
    assert plain is not None
    assert plain.path == b"/predict/batch"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD[:-1],
        HEAD.replace(b"POST", b"PUT"),
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HEAD.replace(b"/predict", b"/predict x"),
        HEAD.replace(b"\r\n", b"\n"),
        HEAD.replace(b"Host: 127.0.0.1:8000\r\n", b""),
        HEAD.replace(b"Content-Length: 5\r\n", b""),
        HEAD.replace(b"Length: 5", b"Length: +5"),
        HEAD.replace(b"Length: 5", b"Length: 5, 5"),
        HEAD.replace(b"Length: 5", b"Length : 5"),
        HEAD.replace(b"Length: 5", b"Length:  5"),
        HEAD.replace(b"Length: 5", b"Length: 9999999999999"),
        with_line(b"Content-Length: 5"),
        with_line(b"Host: other"),
        with_line(b" folded: line"),
        with_line(b"No colon"),
        with_line(b"Name: \xff"),
        with_line(b"Name: a\x00b"),
        with_line(b"Name: a\rb"),
        with_line(b"Transfer-Encoding: chunked"),
        with_line(b"Expect: 100-continue"),
        with_line(b"Upgrade: h2c"),
        with_line(b"Connection: close"),
        with_line(b"Connection: keep-alive, close"),
        with_line(b"Connection: keep-alive\r\nConnection: close"),
        with_line(b"X-Request-ID: mine"),
        with_line(b"Name: " + b"x" * MAX_HEAD_BYTES),
    ],
)
def test_whatever_has_to_be_parsed_is_not_plain(data: bytes) -> None:
    assert PlainHead.of(data) is None


class Parsed:
    """What an HTTP parser makes of a request."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.headers, self.is_whole = b"", b"", list[tuple[bytes, bytes]](), 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_whole += 1


def mutated(rng: random.Random) -> bytes:
    """HEAD with some bytes left out, doubled, or in the place of others."""
    pieces = [b"\r", b"\n", b"\r\n", b": ", b" ", b"\t", b",", b"0", b"7", b"\x00", b"\x80", b"te"]
    data = bytearray(HEAD)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        kind = rng.randrange(3)
        if kind == 0:
            data[at : at + 1] = rng.choice(pieces)
        elif kind == 1:
            data[at:at] = rng.choice(pieces)
        else:
            del data[at : at + rng.randint(1, 3)]
    return bytes(data)


def test_a_parser_agrees_on_every_head_that_is_plain() -> None:
    rng = random.Random(0)
    plain_ones = 0
    for _ in range(20_000):
        head = mutated(rng)
        if (plain := PlainHead.of(head)) is None:
            continue
        plain_ones += 1
        body = bytes(min(plain.body_bytes, 100_000))
        parsed = Parsed(head[: plain.head_bytes] + body)
        assert parsed.parser.get_method() == b"POST"
        assert parsed.parser.get_http_version() == "1.1"
        assert parsed.parser.should_keep_alive()
        assert not parsed.parser.should_upgrade()
        assert parsed.url.partition(b"?")[0] == plain.path
        [length] = [value for name, value in parsed.headers if name == b"content-length"]
        assert int(length) == plain.body_bytes
        assert [name for name, _ in parsed.headers].count(b"host") == 1
        if len(body) == plain.body_bytes:
            assert parsed.is_whole == 1
            assert parsed.body == body
    assert plain_ones > 1000
