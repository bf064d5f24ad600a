"""Real processes for tests: start the driver, look at its children, wait for something to happen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def write_spec(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


def start_driver(
    spec: Path, store: Path, environment: dict[str, str], log: Path, *more: str
) -> subprocess.Popen[bytes]:
    """`python -m tests.drive` in the background; its output goes to a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.drive", str(spec), str(store), *more],
            stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
        )  # fmt: skip


def wait_until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll every 10 ms; fail after some seconds."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.01)


def comes_to(read: Callable[[], Any], wanted: Any, seconds: float = 120.0) -> None:
    """Read until it is this, for what another process writes or draws bit by bit; fail with what it was in the end."""
    end = time.monotonic() + seconds
    while (found := read()) != wanted and time.monotonic() < end:
        time.sleep(0.2)
    assert found == wanted


def count_published(store: Path) -> int:
    """The steps published in a store's directory, whether it is there yet or not."""
    return sum(1 for _ in store.glob("objects/*/manifest.json"))


def descendants(pid: int) -> dict[int, str]:
    """Every living process below a pid, with its command line."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: dict[int, str] = {}
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if (parent == pid or parent in found) and child not in found}
        found.update({child: commands.get(child, "") for child in more})
        grown = bool(more)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, with that of the children that it has waited for."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def status_bytes(name: str, pid: int | None = None) -> int:
    """A size that the kernel tells of a process, of this one by default: `VmRSS`, `VmHWM`, `RssAnon`.

    Raises:
        IndexError: a process that is ending, which has none.
    """
    status = (Path("/proc") / str(pid or "self") / "status").read_text()
    return 1024 * int(status.split(f"{name}:")[1].split()[0])
