"""Headers that keep a browser from doing more with a reply than it was meant for."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# For replies that are no page; the pages bring a policy of their own. Strict-Transport-Security
# belongs to whoever ends TLS in front of the service.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


_FIELDS = tuple((name.lower().encode(), value.encode()) for name, value in HEADERS.items())


class SecurityHeadersMiddleware:
    """Adds HEADERS to every reply that does not have them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message.get("headers", [])
                names = {name.lower() for name, _ in given}
                message["headers"] = [*given, *(h for h in _FIELDS if h[0] not in names)]
            await send(message)

        await self._app(scope, receive, send_with_headers)
