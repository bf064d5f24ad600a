"""Prefect's temporary server must not outlive a flow process that is killed.

Prefect stops it at exit; nobody does after `kill -9`. A guard, a shell that waits for the end of its input, which the
kernel closes with this process, kills it then.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
from pathlib import Path


@functools.cache
def guard_server() -> None:
    """Start one guard over the temporary servers that this process has started."""
    servers = [pid for pid in _children() if "prefect.server" in _command_line(pid)]
    if not servers:
        return
    guard = subprocess.Popen(
        ["/bin/sh", "-c", 'trap "" INT; while read -r _; do :; done; kill -9 "$@"', "guard", *map(str, servers)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def dismiss() -> None:
        guard.kill()
        guard.wait()
        if guard.stdin is not None:
            guard.stdin.close()

    atexit.register(dismiss)


def _children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return [int(pid) for file in tasks.glob("*/children") for pid in file.read_text().split()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
