"""What a night spends, and the halt once that is too much or somebody else comes first.

Invariant: a night's record counts all attempts at it; only what was computed counts, never what was reused.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from flows.polling import every
from mot_core.nightly.digest import Estimate
from mot_core.nightly.nights import Night
from mot_core.nightly.spec import Budget
from mot_core.steps import Step
from tasks.invocation import Halt, Watcher

Occupied = Callable[[], str | None]
"""Why the night has to make way now, in a few words; None while it has not."""
log = logging.getLogger("mot.nightly")


class Meter:
    """What a night has spent, all attempts together, and the halt once it is too much or somebody else comes."""

    def __init__(self, night: Night, budget: Budget, halt: Halt, occupied: Occupied) -> None:
        self.night, self.budget, self.halt, self.occupied = night, budget, halt, occupied
        self._before, self._clock, self._lock = night.spent_seconds, time.monotonic(), threading.Lock()

    def fits(self, estimate: Estimate) -> bool:
        """Whether what is left of the night holds a visit."""
        tokens = self.budget.max_completion_tokens
        self.note_time()
        return estimate.seconds <= self.budget.minutes * 60.0 - self.night.spent_seconds and (
            tokens is None or estimate.tokens <= tokens - self.night.spent_tokens
        )

    def note_time(self) -> None:
        self.night.spent_seconds = self._before + time.monotonic() - self._clock

    def watching(self, watch: Watcher) -> Watcher:
        """A watcher that counts the completion tokens of what is published, and tells another one."""

        def listen(step: Step, event: dict[str, Any]) -> None:
            if event.get("event") == "published" and not event["record"]["reused"]:
                with self._lock:
                    self.night.spent_tokens += sampled_tokens(event["record"]["counts"])
                self.look(ask=False)
            watch(step, event)

        return listen

    def look(self, *, ask: bool = True) -> None:
        """Request the halt where it is due."""
        self.note_time()
        minutes, tokens = self.budget.minutes, self.budget.max_completion_tokens
        if self.night.spent_seconds >= minutes * 60.0:
            self.halt.request(f"the night's {minutes:g} minutes are spent")
        if tokens is not None and self.night.spent_tokens >= tokens:
            self.halt.request(f"the night's {tokens:,} completion tokens are spent")
        if ask and self.halt.reason is None and (reason := asked(self.occupied)) is not None:
            self.halt.request(reason)


@contextlib.contextmanager
def metered(night: Night, budget: Budget, halt: Halt, occupied: Occupied, poll_seconds: float) -> Iterator[Meter]:
    """A meter that looks every few seconds, from a thread of its own, and keeps the night's record."""
    meter = Meter(night, budget, halt, occupied)
    meter.look()

    def look() -> None:
        meter.look()
        with contextlib.suppress(OSError):  # a full disk is told by the run that meets it
            night.save()

    with every(poll_seconds, look, "mot-nightly"):
        yield meter


def asked(occupied: Occupied) -> str | None:
    """What the caller says; one that cannot be asked now keeps nobody waiting."""
    try:
        return occupied()
    except Exception as error:
        log.warning("whether the night has to make way cannot be asked: %s", error)
        return None


def sampled_tokens(counts: dict[str, Any]) -> int:
    """The completion tokens that a step asked for, by its counts; what a journal held already is not among them."""
    if "num_asked" in counts:
        return int(counts["num_tokens"] * counts["num_asked"] / max(1, counts["num_requests"]))
    return int(counts.get("sampled_tokens", 0))
