"""Which devices of this machine are in use, by whatever run of this user: a locked file each, in a folder of the machine's own.

The store cannot say it: machines may share it, and runs of one machine may use several. The kernel frees a lock (`flock`)
with its process. Invariants: a device is in one job of all runs; a run that waits holds no device, so nobody waits in a
circle, but holds the place at the head of the queue, so that one that needs many is never overtaken for ever by others
that need few.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import urllib.parse
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO

from mot_core.completers.memory import device_uuids
from mot_core.errors import WorkerError

POLL_SECONDS = 0.2
"""How often a run that waits for another one's devices looks again."""
_QUEUE = "queue"
log = logging.getLogger("mot.workers")


class Devices:
    """What one run holds of the machine's devices. Not thread-safe: the pool asks under its lock."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._held: dict[str, IO[str]] = {}
        self._place: IO[str] | None = None
        self._told: tuple[int, str] | None = None

    def claim(self, free: Sequence[str], count: int) -> tuple[str, ...] | None:
        """The first `count` devices of these that no other run has, or none at all and a place in the queue."""
        self._place = self._place or self._lock(_QUEUE)
        if self._place is None:
            self._tell(count, f"{self._holder(_QUEUE)} waits for some as well, and came first")
            return None
        taken: dict[str, IO[str]] = {}
        for name in free:
            if len(taken) < count and (file := self._lock(self._name_of(name))) is not None:
                taken[name] = file
        if len(taken) < count:
            for file in taken.values():
                file.close()
            others = [f"{name} has {self._holder(self._name_of(name))}" for name in free if name not in taken]
            self._tell(count, "; ".join(others))
            return None
        self._held |= taken
        self.stop_waiting()
        return tuple(taken)

    def give_back(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._held:
                self._held.pop(name).close()

    def stop_waiting(self) -> None:
        """Let other runs go first."""
        if self._place is not None:
            self._place.close()
        self._place = self._told = None

    def close(self) -> None:
        """Give all back."""
        self.stop_waiting()
        self.give_back(list(self._held))

    def _lock(self, name: str) -> IO[str] | None:
        file = (self._folder / f"{name}.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "run": self._run}, file)
        file.flush()
        return file

    def _holder(self, name: str) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            held = json.loads((self._folder / f"{name}.lock").read_text())
            return f"process {held['pid']} ({held['run']})"
        return "another process"

    def _tell(self, count: int, why: str) -> None:
        if self._told != (count, why):
            self._told = (count, why)
            log.warning("waiting for %d device(s) of this machine: %s", count, why)

    def _name_of(self, device: str) -> str:
        """The device itself, whatever it is called here: each of two batch jobs may call its own one 0."""
        whole = [uuid for uuid in self._uuids.values() if device.startswith("GPU-") and uuid.startswith(device)]
        return urllib.parse.quote(self._uuids.get(device) or (whole or [device])[0], safe="")

    @cached_property
    def _uuids(self) -> dict[str, str]:
        return device_uuids()

    @cached_property
    def _folder(self) -> Path:
        folder = runtime_folder() / "mot-devices"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise WorkerError(
                f"{folder}: runs of this machine cannot tell each other there which devices they use ({error}), expected a "
                "folder that this user can write; set XDG_RUNTIME_DIR to one"
            ) from error
        if folder.stat().st_uid != os.getuid():
            raise WorkerError(
                f"{folder} belongs to another user, expected this one ({os.getuid()}); set XDG_RUNTIME_DIR"
            )
        return folder


def runtime_folder() -> Path:
    """A folder of this user on this machine that is gone with its next start. One that is named but cannot be written, as in
    a batch job or a container that took the variable over, is passed over."""
    named, usual = os.environ.get("XDG_RUNTIME_DIR"), Path(f"/run/user/{os.getuid()}")
    if named and _can_write(Path(named)):
        return Path(named)
    return usual if usual.is_dir() and _can_write(usual) else Path(tempfile.gettempdir()) / f"mot-{os.getuid()}"


def _can_write(folder: Path) -> bool:
    """Whether a folder is there, made if need be, and takes files."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
