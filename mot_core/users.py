"""Who uses a store: runs and workers side by side, or whoever removes things from it, alone.

A user holds a file of its own, `STORE/locks/use-….json`, which says who it is. Whoever removes holds the gate
(`gc.lock`), through which every user passes once, on its way in. Invariant: while things are removed nobody uses the
store, and a user that was killed counts as gone at once (`flock` ends with its process).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mot_core.errors import StoreError
from mot_core.files import explain_disk_errors

GATE, USE = "gc.lock", "use-"
GATE_SECONDS = 2.0  # users pass the gate in microseconds; whoever holds it for longer removes things


@contextlib.contextmanager
def in_use(locks: Path, what: str, is_run: bool = False) -> Iterator[None]:
    """Keep removals out for as long as the block takes; waits for one that is under way. Where the store cannot be
    written nothing is held: who may only read it must not be stopped. `is_run` tells runs from what works for them.

    Raises:
        StoreError: the disk is full.
    """
    user = {"what": what, "run": is_run, "pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    with explain_disk_errors(f"store {locks.parent}"):
        held = _enter(locks, json.dumps(user).encode())
    if held is None:
        yield
        return
    with held:
        try:
            yield
        finally:
            Path(held.name).unlink(missing_ok=True)


def _enter(locks: Path, user: bytes) -> IO[bytes] | None:
    """A file that this user alone holds, and that says who it is; None where nothing can be written."""
    try:
        with _gate(locks, fcntl.LOCK_SH):
            held = (locks / f"{USE}{os.getpid()}-{secrets.token_hex(4)}.json").open("xb", buffering=0)
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            held.write(user)
        except OSError:
            held.close()
            Path(held.name).unlink(missing_ok=True)
            raise
        return held
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return None


@contextlib.contextmanager
def alone(locks: Path) -> Iterator[None]:
    """Nobody uses the store in the block; users that come meanwhile wait.

    Raises:
        StoreError: somebody uses it, with who; or another removal is under way.
    """
    with contextlib.ExitStack() as stack:
        end = time.monotonic() + GATE_SECONDS
        while True:
            try:
                stack.enter_context(_gate(locks, fcntl.LOCK_EX | fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise StoreError(
                        f"store {locks.parent}: another mot gc is at work; wait until it has ended"
                    ) from None
                time.sleep(0.05)
        using = users(locks)
        if using:
            raise StoreError(
                f"store {locks.parent} is in use: {'; '.join(using)}. Nothing was removed: wait until that has ended, or "
                "stop it (the same command goes on later), then run mot gc again; --dry-run works at any time"
            )
        for left in locks.glob(f"{USE}*"):  # of users that were killed
            left.unlink(missing_ok=True)
        yield


def users(locks: Path) -> list[str]:
    """Who uses the store at this moment, a line each."""
    return [_told(text) for text in _held(locks)]


def other_runs(locks: Path) -> list[str]:
    """The ids of the runs that other processes are at, at this moment."""
    found = []
    for text in _held(locks):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a moment ago it came in
            user = json.loads(text)
            if user["run"] and (user["pid"], user["host"]) != (os.getpid(), socket.gethostname()):
                found.append(str(user["what"]))
    return found


def _held(locks: Path) -> Iterator[str]:
    """What each living user says of itself."""
    for path in sorted(locks.glob(f"{USE}*")):
        with contextlib.suppress(FileNotFoundError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield file.read()


def _told(text: str) -> str:
    try:
        user = json.loads(text)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(user["since"]))
        return f"{user['what']} (process {user['pid']} on {user['host']}, since {since})"
    except (ValueError, KeyError, TypeError):  # a moment ago it came in
        return "a process that has just started"


@contextlib.contextmanager
def _gate(locks: Path, how: int) -> Iterator[IO[str]]:
    with (locks / GATE).open("a+") as file:  # on NFS a shared lock needs reading, an exclusive one writing
        fcntl.flock(file, how)
        yield file
