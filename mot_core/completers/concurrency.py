"""When a request may be sent: how many at once, not before when, and how long after a failure.

Invariant: never more than `most` requests are in flight, and none is sent while the endpoint asked to be left alone.
Additive increase and multiplicative decrease (Chiu and Jain 1989): many clients of one endpoint come to equal shares.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from random import Random

DECREASE = 0.5
BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0


class AdaptiveLimit:
    """How many requests may be in flight: halved when the endpoint throttles, raised by one a round of answers.

    Requests that were sent before a decrease tell nothing about the new limit: only the first 429 of a round counts.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.in_flight = most, float(most), 0
        self._round = 0
        self._held_until = -math.inf
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def admit(self) -> int:
        """Wait for a place, in order of asking; the round it was given in."""
        if not self._waiting and self._has_place():
            self.in_flight += 1
            return self._round
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._give_places()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()  # given in the moment in which its taker was cancelled
            raise

    def release(self) -> None:
        """Give a place back."""
        self.in_flight -= 1
        self._give_places()

    def answered(self) -> None:
        """A request was served: one more may fly after a whole round of these."""
        self.limit = min(float(self.most), self.limit + 1.0 / self.limit)

    def throttled(self, sent_in_round: int) -> bool:
        """A request was turned away; whether that lowered the limit. Call before `release`."""
        if sent_in_round != self._round:
            return False
        # What flies, not what might: a limit that was never reached is no load to halve.
        self.limit = max(1.0, min(self.limit, self.in_flight) * DECREASE)
        self._round += 1
        return True

    def hold(self, seconds: float) -> None:
        """Send nothing for some seconds."""
        self._held_until = max(self._held_until, asyncio.get_running_loop().time() + seconds)

    def _has_place(self) -> bool:
        return self.in_flight < int(self.limit) and asyncio.get_running_loop().time() >= self._held_until

    def _give_places(self) -> None:
        while self._waiting and self._has_place():
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(self._round)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        if self._waiting and loop.time() < self._held_until:
            # A timer may fire a clock tick early; then this sets the next one.
            self._timer = loop.call_at(self._held_until, self._give_places)


def backoff_seconds(failures: int, chance: Random) -> float:
    """Exponential with full jitter: anywhere between nothing and a span that doubles with each failure."""
    return chance.uniform(0.0, min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** min(failures - 1, 32)))


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the endpoint asks to be left alone: `retry-after-ms`, or `Retry-After` in seconds or as a date.

    None where it says nothing of use: absent, malformed, or not in the future. A date is read against the reply's own
    `Date`, since the two clocks may differ.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return seconds if math.isfinite(seconds) and seconds > 0.0 else None
    until = _timestamp(headers.get("retry-after"))
    if until is None:
        return None
    now = _timestamp(headers.get("date"))
    seconds = until - (now if now is not None else time.time())
    return seconds if seconds > 0.0 else None


def _timestamp(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
