"""Nights on disk: which one is under way, what it has spent, and those before.

    STORE/nightly/NAME/lock                  held (flock) by the process of a night
    STORE/nightly/NAME/NIGHT/night.json      a night: when it began, what it spent, what it visited
    STORE/nightly/NAME/NIGHT/canary.json     what its canary gave
    STORE/nightly/NAME/NIGHT/digest.json     its digest, written last, with digest.md and digest.html
    STORE/nightly/NAME/results/RESULT.json   scores by problem of cells' results

Invariant: a night without a digest was killed, and the next call is the rest of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.errors import NightUnderWay
from mot_core.files import explain_disk_errors, write_atomically
from mot_core.nightly.canary import CANARY

NIGHT, DIGEST = "night.json", "digest.json"
ANOTHER_DAY_SECONDS = 12 * 3600.0
"""An attempt so much later than a night's beginning is another day's, with a budget of its own."""


@dataclass
class Night:
    """One night's record. `spent` counts all attempts at it; `visits` are its cells in the order in which they were run."""

    root: Path
    name: str
    started: float
    spent_seconds: float = 0.0
    spent_tokens: int = 0
    visits: list[dict[str, Any]] = field(default_factory=list)
    budget_from: float = 0.0
    """When the attempts began that share a budget."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def directory(self) -> Path:
        return self.root / self.name

    def save(self) -> None:
        with self._lock:
            document = {
                "night": self.name, "started": self.started, "budget_from": self.budget_from,
                "spent_seconds": self.spent_seconds, "spent_tokens": self.spent_tokens, "visits": self.visits,
            }  # fmt: skip
            write_atomically(self.directory / NIGHT, json.dumps(document, indent=1) + "\n")

    def canary(self) -> dict[str, Any] | None:
        """What this night's canary gave; None until it was computed."""
        return _read(self.directory / CANARY)

    def earlier(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """That document of each night before this one, the newest first."""
        for number in range(int(self.name) - 1, 0, -1):
            found = _read(self.root / f"{number:04d}" / name)
            if found is not None:
                yield f"{number:04d}", found

    def last_digest(self) -> dict[str, Any] | None:
        """The digest of the night before; None if there is none."""
        return next((digest for _, digest in self.earlier(DIGEST)), None)


@contextlib.contextmanager
def night_under_way(store: Store, name: str) -> Iterator[Night]:
    """The night to work on: the one that was killed, else the next one; no other process has it meanwhile.

    Raises:
        NightUnderWay: another process is at it.
    """
    root = store.root / "nightly" / name
    with explain_disk_errors(str(root)):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("a+")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise NightUnderWay(
                f"nightly {name} is under way in {store.root} (process {lock.read().strip() or 'unknown'}); wait for its "
                "digest, or stop that process"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield _opened(root)


def _opened(root: Path) -> Night:
    numbers = [int(path.name) for path in root.iterdir() if path.name.isdigit()]
    last = max(numbers, default=0)
    now = time.time()
    if last and not (root / f"{last:04d}" / DIGEST).is_file():
        found = _read(root / f"{last:04d}" / NIGHT)
        if found is not None:
            night = Night(
                root, found["night"], found["started"], found["spent_seconds"], found["spent_tokens"], found["visits"],
                found["budget_from"],
            )  # fmt: skip
            if now - night.budget_from > ANOTHER_DAY_SECONDS:
                night.spent_seconds, night.spent_tokens, night.budget_from = 0.0, 0, now
            return night
    else:
        last += 1
    night = Night(root, f"{max(last, 1):04d}", now, budget_from=now)
    night.directory.mkdir(exist_ok=True)
    night.save()
    return night


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return None
