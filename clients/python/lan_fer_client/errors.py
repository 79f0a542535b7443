"""What a call may raise.

::

    ClientError
    ├── ConnectionFailedError   no reply: refused, broken off, or not in time
    └── ProblemError            a reply that says what is wrong
"""

from __future__ import annotations

from lan_fer_client.models import Problem


class ClientError(Exception):
    """Root of the tree."""


class ConnectionFailedError(ClientError):
    """No reply came in any attempt; ``__cause__`` is httpx's error of the last one."""


class ProblemError(ClientError):
    """The service, or a proxy before it, answered with an error."""

    def __init__(self, problem: Problem, *, retry_after_seconds: float | None) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds
        """After how many seconds the service asks to try again; None where it does not."""

    @property
    def kind(self) -> str:
        """The last part of the problem's type, as "image-too-large"; it never changes."""
        return self.problem.type.rpartition(":")[2]
