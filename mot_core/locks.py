"""One holder a step: the lock behind which a step is computed.

Invariant: a lock of a process that is gone is free at once. On one machine the kernel sees to that (`flock`
ends with its process); the interface is narrow enough that a lease with a heartbeat can stand in its place.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

log = logging.getLogger("mot.store")


class Lock(Protocol):
    """Held between `__enter__` and `__exit__` by at most one holder anywhere."""

    def __enter__(self) -> Lock: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileLock:
    """`flock` on a file that names its holder; waits for a living holder, and says whom it waits for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> FileLock:
        # The file stays when the lock is released: removing it would let two holders lock two inodes of one name.
        file = self.path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.info("waiting for %s, held by %s", self.path.stem, file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, file)
        file.flush()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
