"""One holder a step, among all processes of all machines that share the store's folder: leases.

    STORE/locks/<name>/<number>    a lease: who holds it, and a count that every heartbeat raises

A lease's number is one above the last one's. `link` makes the file, whole, for one of those who try: open(2) advises it
over O_EXCL for locks on NFS, with the count of links for a reply that got lost. A waiter takes over what was released,
what a process of this machine left by ending, and what has shown no change for the lease's expiry, by the waiter's own
clock: nothing compares two machines' clocks.

Invariants: the highest number holds the lock and is never removed, so whoever makes a lower one sees that it is late;
a lease that was taken over is gone under its name, so its holder finds out before it publishes. What it may still write
in the moment between must not harm: `mot_core.artifacts` and the journal see to that. Longer than most: taking, holding and losing a lease are one protocol.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mot_core.errors import LeaseLost, StoreError
from mot_core.processes import Process

FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.01, 0.25
"""A waiter looks again after this long, at first and at last."""
RECORD_BYTES = 512
"""A record is padded to one size: a heartbeat replaces it in place, by one write that needs no space."""
_GONE = (errno.ENOENT, errno.ESTALE)  # the second is what NFS says of a file that another machine removed
log = logging.getLogger("mot.store")


class Lock(Protocol):
    """Held between `__enter__` and `__exit__` by at most one holder that `check` lets pass, anywhere."""

    number: int
    """Higher than that of every holder before."""
    earlier_may_run: bool
    """Whether somebody who held it before may still be running, unaware that it is lost."""

    def __enter__(self) -> Lock: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def check(self) -> None:
        """Pass if it is still held.

        Raises:
            LeaseLost: another holder has taken it over.
        """


@dataclass(frozen=True)
class LeaseTiming:
    """How often a holder shows that it lives, and how long silence lasts until another takes over; seconds."""

    heartbeat_seconds: float = 10.0
    expiry_seconds: float = 60.0

    @classmethod
    def of_store(cls, marker: Path) -> LeaseTiming:
        """What `"lease"` in a store's `store.json` says, so that every machine says the same.

        Raises:
            StoreError: unknown names, no numbers, or an expiry that a single late heartbeat would reach.
        """
        try:
            named = json.loads(marker.read_text()).get("lease", {})
        except FileNotFoundError:
            named = {}
        try:
            timing = cls(**{name: float(value) for name, value in named.items()})
        except (TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{marker}: 'lease' is {named!r}; expected {asdict(cls())} ({error})") from None
        if not 0 < 3 * timing.heartbeat_seconds <= timing.expiry_seconds:
            raise StoreError(
                f"{marker}: a lease with {asdict(timing)} ends by a late heartbeat; expected an expiry of at least three "
                "heartbeats, as in 10 and 60"
            )
        return timing


@dataclass(frozen=True)
class Record:
    """What a lease's file says."""

    holder: str
    process: Process
    expiry_seconds: float
    earlier_may_run: bool
    beat: int = 0
    released: bool = False

    @property
    def mark(self) -> bytes:
        """How every record of one holder starts, so that one read in the middle of a heartbeat is told as well."""
        return json.dumps({"holder": self.holder}).encode()[:-1]

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(RECORD_BYTES - 1) + b"\n"

    @classmethod
    def parse(cls, text: bytes) -> Record | None:
        """The record, or None for one that is torn or of no such form; such a lease ends by silence alone."""
        try:
            document: Mapping[str, Any] = json.loads(text)
            return cls(**{**document, "process": Process(**document["process"])})
        except (ValueError, TypeError, KeyError):
            return None


class Lease:
    """The lock behind which something of the store is written; waits for a living holder, and says whom it waits for."""

    def __init__(
        self, directory: Path, timing: LeaseTiming | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory = directory
        self.timing = timing or LeaseTiming()
        self.number = 0
        self.earlier_may_run = False
        self._clock = clock
        self._record: Record | None = None
        self._seen: tuple[int, bytes] | None = None
        self._seen_at = 0.0
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.directory.mkdir(parents=True, exist_ok=True)
        pause, told = FIRST_LOOK_SECONDS, 0
        while not self.take():
            if self._seen is not None and self._seen[0] != told:
                told = self._seen[0]
                log.info("waiting for %s, held by %s", self.directory.name, _holder(self._seen[1]))
            time.sleep(pause)
            pause = min(1.5 * pause, LAST_LOOK_SECONDS)
        self._stop.clear()
        # A daemon: an interpreter that ends must not wait for it.
        self._heart = threading.Thread(target=self._beat_on, name=f"lease-{self.directory.name[:8]}", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        self.release(in_order=kind is None)

    # -- taking ----------------------------------------------------------------------------------------

    def take(self) -> bool:
        """One look, without waiting: whether the lock is this holder's now."""
        number = _highest(self._names())
        doubtful = False
        if number:
            try:
                text = self._path(number).read_bytes()
            except OSError as error:
                if error.errno in _GONE:
                    return False  # it was taken over while we looked
                raise
            record = Record.parse(text)
            ended = record is not None and (record.released or record.process.is_gone())
            if not ended and not self._silent(number, text, record):
                return False
            doubtful = not ended or (record is not None and record.earlier_may_run)
        return self._claim(number + 1, doubtful)

    def _silent(self, number: int, text: bytes, record: Record | None) -> bool:
        """Whether the lease has shown no change for its expiry, by this process's clock."""
        if self._seen != (number, text):
            self._seen, self._seen_at = (number, text), self._clock()
        expiry = record.expiry_seconds if record is not None else self.timing.expiry_seconds
        return self._clock() - self._seen_at >= expiry

    def _claim(self, number: int, doubtful: bool) -> bool:
        record = Record(uuid.uuid4().hex, Process.current(), self.timing.expiry_seconds, doubtful)
        claim, target = self.directory / f".claim-{record.holder}", self._path(number)
        claim.write_bytes(record.to_bytes())  # and closed, which on NFS sends it to the server
        try:
            if not _link(claim, target):
                return False
        except FileNotFoundError:
            return False  # the one who won has cleared our claim away
        finally:
            claim.unlink(missing_ok=True)
        names = self._names()
        if _highest(names) > number:
            target.unlink(missing_ok=True)  # we looked long ago: the number had been used and removed since
            return False
        for name in names:
            if name != target.name:
                (self.directory / name).unlink(missing_ok=True)
        self.number, self.earlier_may_run, self._record = number, doubtful, record
        return True

    # -- holding ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Pass if the lease is still this holder's.

        Raises:
            LeaseLost: another holder has taken it over.
        """
        assert self._record is not None, "checked without being held"
        try:
            ours = self._path(self.number).read_bytes().startswith(self._record.mark)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            ours = False
        if not ours or _highest(self._names()) > self.number:
            raise LeaseLost(
                f"{self.directory.name}: this process showed no sign of life for {self.timing.expiry_seconds:g} s and lost "
                "its lease to another one, which does the work now; if that was no pause of the machine, raise "
                "expiry_seconds in store.json"
            )

    def beat(self) -> None:
        """Show that the holder lives.

        Raises:
            LeaseLost: too late.
        """
        self.check()
        assert self._record is not None
        self._write(replace(self._record, beat=self._record.beat + 1))

    def release(self, in_order: bool = True) -> None:
        """Let go. A holder that fails passes its doubt on, for it may not have shut out who came before."""
        if self._record is None:
            return
        try:
            self.check()
            doubtful = self.earlier_may_run and not in_order
            self._write(replace(self._record, released=True, earlier_may_run=doubtful))
        except LeaseLost:
            pass  # nothing is left to let go of
        except OSError as error:
            log.warning(
                "%s could not be released (%s); it ends in %g s", self.directory, error, self.timing.expiry_seconds
            )
        self._record = None

    def _write(self, record: Record) -> None:
        # By name, not through a file kept open: a lease that is gone stays gone, and closing tells the other machines.
        try:
            with self._path(self.number).open("r+b") as file:
                file.write(record.to_bytes())
        except OSError as error:
            if error.errno not in _GONE:
                raise
            raise LeaseLost(f"{self.directory.name}: the lease was taken over") from None
        self._record = record

    def _beat_on(self) -> None:
        while not self._stop.wait(self.timing.heartbeat_seconds):
            try:
                self.beat()
            except LeaseLost as lost:
                log.warning("%s; what this process still computes of it is not published", lost)
                return
            except OSError as error:
                log.warning("%s: a heartbeat failed (%s); it is tried again", self.directory.name, error)

    # -- names -----------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self.directory / str(number)

    def _names(self) -> list[str]:
        return os.listdir(self.directory)  # noqa: PTH208  (names alone, and thrice as fast)


def _highest(names: list[str]) -> int:
    """The number that holds the lock; 0 where nobody ever has."""
    return max((int(name) for name in names if name.isdigit()), default=0)


def _link(claim: Path, target: Path) -> bool:
    """Make the target, if nobody has."""
    try:
        os.link(claim, target)
        return True
    except FileExistsError:
        # Over NFS a reply may get lost; the call is then repeated, and fails because it had been done.
        return claim.stat().st_nlink == 2


def _holder(text: bytes) -> str:
    record = Record.parse(text)
    return f"process {record.process.pid} of {record.process.host}" if record is not None else "another process"
