"""Who may ask, and how often: named API keys, and a rate limit for each name.

Keys are kept as SHA-256 digests and compared in constant time; no key is logged or shown.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from service.errors import (
    MissingKeyError,
    RateLimitedError,
    SettingsError,
    TooManyImagesError,
    UnknownKeyError,
)
from service.settings import Settings

LONGEST_SECONDS = 366 * 24 * 3600  # of a rate limit
ENTRY = re.compile(r"([A-Za-z0-9._-]{1,64})=([A-Za-z0-9._~+/=-]{16,256})")
ENTRY_FORM = "name=key, the key of 16 to 256 letters, digits or ._~+/=-"


@dataclass(frozen=True)
class NamedKey:
    """One key. Several may share a name: while one takes the place of another."""

    name: str
    digest: bytes


class Access:
    """The keys and the rate limit of one service. Used from its event loop alone."""

    def __init__(self, keys: Sequence[NamedKey] = (), limits: Sequence[RateLimitItem] = ()) -> None:
        self._keys = tuple(keys)
        self._limits = tuple(limits)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    @classmethod
    def load(cls, settings: Settings) -> Access:
        """From the settings and the file they name. Raises SettingsError, without any key in it."""
        keys = _keys_of(settings)
        if settings.rate_limit is None:
            return cls(keys)
        if not keys:
            raise SettingsError("rate_limit counts by API key: set api_keys or api_keys_file too")
        return cls(keys, _limits_of(settings.rate_limit))

    @property
    def asks_for_keys(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self._keys)

    @property
    def limits_rates(self) -> bool:
        """Whether requests of a key are counted."""
        return bool(self._limits)

    def name_of(self, key: str | None) -> str:
        """The name of a request's key. Raises MissingKeyError and UnknownKeyError."""
        if not key:
            raise MissingKeyError(
                "Send an API key in the header X-API-Key, or as Authorization: Bearer <key>."
            )
        digest = _digest(key)
        # All of them, whichever fits: the time taken tells nothing.
        names = [k.name for k in self._keys if hmac.compare_digest(k.digest, digest)]
        if not names:
            raise UnknownKeyError("The API key is not, or no longer, one of this service's.")
        return names[0]

    async def spend(self, name: str, images: int = 1) -> None:
        """Count `images` to the key of that name.

        Raises RateLimitedError, or TooManyImagesError where no wait would make room for so many.
        """
        most = min((limit.amount for limit in self._limits), default=images)
        if images > most:
            raise TooManyImagesError(
                f"This API key may send at most {most} photos at a time; the call has {images}."
            )
        for limit in self._limits:  # what one of them refuses is not counted by the others
            if not await self._limiter.test(limit, name, cost=images):
                reset = (await self._limiter.get_window_stats(limit, name)).reset_time
                raise RateLimitedError(
                    f"This API key may send photos at this rate: {limit}.",
                    retry_after_seconds=max(1, math.ceil(reset - time.time())),
                )
        for limit in self._limits:
            await self._limiter.hit(limit, name, cost=images)


def _keys_of(settings: Settings) -> list[NamedKey]:
    keys = []
    if settings.api_keys is not None:
        keys += _parse_keys(settings.api_keys.get_secret_value(), "api_keys")
    if settings.api_keys_file is not None:
        try:
            text = settings.api_keys_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise SettingsError(f"api_keys_file {settings.api_keys_file}: {reason}") from error
        keys += _parse_keys(text, "api_keys_file")
    return keys


def _parse_keys(text: str, source: str) -> list[NamedKey]:
    """Entries between commas or line ends; # begins a comment line."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    entries = [e.strip() for line in lines for e in line.split(",") if e.strip()]
    if not entries:
        # Set by mistake to nothing, it must not open the service to everybody.
        raise SettingsError(f"{source} holds no key; unset it to ask for none")
    keys = []
    for number, entry in enumerate(entries, 1):
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise SettingsError(f"{source}: entry {number} is not {ENTRY_FORM}")
        keys.append(NamedKey(match[1], _digest(match[2])))
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _limits_of(text: str) -> list[RateLimitItem]:
    try:
        limits = parse_many(text)
    except ValueError as error:
        raise SettingsError(f'rate_limit: "{text}" is not like "10/second; 5000/day"') from error
    if any(limit.amount < 1 for limit in limits):
        raise SettingsError(f'rate_limit: "{text}" allows nothing')
    if any(limit.get_expiry() > LONGEST_SECONDS for limit in limits):
        raise SettingsError(f'rate_limit: "{text}" counts for over a year')
    return limits
