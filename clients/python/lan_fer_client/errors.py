"""What a call may raise.

::

    ClientError
    ├── ConnectionFailedError   no reply: refused, broken off, too long, or not in time
    ├── BadReplyError           a reply, and no error, but not what the service answers
    └── ProblemError            a reply that says what is wrong
"""

from __future__ import annotations

from lan_fer_client.models import Problem
from lan_fer_client.text import printable


class ClientError(Exception):
    """Root of the tree."""


class ConnectionFailedError(ClientError):
    """No whole reply came in any attempt; ``__cause__`` is httpx's error of the last one."""


class BadReplyError(ClientError):
    """A reply that says that all is well, but not what the service answers: another server's."""

    def __init__(self, reason: str, *, status: int, content_type: str) -> None:
        of = printable(content_type, 100) or "no content type"
        super().__init__(f"not a reply of the service ({status}, {of}): {printable(reason)}")
        self.status = status
        self.content_type = content_type
        """As the reply has it, which may be nothing."""


class ProblemError(ClientError):
    """The service, or a proxy before it, answered with an error."""

    def __init__(self, problem: Problem, *, retry_after_seconds: float | None) -> None:
        super().__init__(printable(f"{problem.status} {problem.title}: {problem.detail}"))
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds
        """After how many seconds the service asks to try again; None where it does not."""

    @property
    def kind(self) -> str:
        """The last part of the problem's type, as "image-too-large"; it never changes."""
        return self.problem.type.rpartition(":")[2]
