"""A long-running process that `mot up` starts and `mot down` ends: by its pid and start time, so that no other is hit.

Invariant: what a record says was started is either this very process, or gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mot_core.errors import WorkerError

STOP_SECONDS = 20.0
RELEASE_SECONDS = 5.0
"""What a killed server's children may take to end, and to let go of its port."""


@dataclass(frozen=True)
class Service:
    """One started process, leader of a session of its own."""

    name: str
    pid: int
    started: int
    """Its start in the kernel's clock ticks since boot: a pid that was given again has another."""
    url: str | None
    log: str

    @property
    def is_worker(self) -> bool:
        return self.name.startswith("worker ")

    @property
    def is_alive(self) -> bool:
        return start_of(self.pid) == self.started

    def signal(self, number: int) -> None:
        """Send a signal to it and to what it started, if it is alive."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def stop_all(services: Sequence[Service]) -> list[Service]:
    """End services together, kindly at first; those that were alive."""
    alive = [service for service in services if service.is_alive]
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
        for service in alive:
            service.signal(number)
        end = time.monotonic() + seconds
        while any(service.is_alive for service in alive) and time.monotonic() < end:
            for service in alive:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(service.pid, os.WNOHANG)  # ours, if this very process started it
            time.sleep(0.05)
    return alive


def end_all_with(variable: str, value: str) -> list[int]:
    """End every process of this user that has a variable in the environment it was started with, but this one; their pids.
    Children of a process that was killed are found so, whatever session they are in."""
    mark, signalled = f"\0{variable}={value}\0".encode(), set[int]()
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
        for pid in found_with(mark):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                signalled.add(pid)
        end = time.monotonic() + seconds
        while found_with(mark) and time.monotonic() < end:
            time.sleep(0.05)
    return sorted(signalled)


def found_with(mark: bytes) -> list[int]:
    """The living processes whose environment holds these bytes, but this one."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            pid = int(entry.name) if entry.name.isdigit() else os.getpid()
            if pid != os.getpid() and mark in b"\0" + (entry / "environ").read_bytes() and start_of(pid) is not None:
                found.append(pid)
    return found


def start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def start(
    name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, url: str | None = None
) -> Service:
    """Start a process that outlives this one; its output goes to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process.returncode = 0  # it is meant to be left behind: no ResourceWarning
    started = start_of(process.pid)
    if started is None:
        raise WorkerError(f"{name} ended at once; its output: {log}")
    return Service(name, process.pid, started, url, str(log))


def wait_for(service: Service, is_ready: Callable[[], bool], seconds: float) -> None:
    """Wait until a service serves.

    Raises:
        WorkerError: it ended, or is not ready in time.
    """
    end = time.monotonic() + seconds
    while not is_ready():
        if not service.is_alive or time.monotonic() > end:
            how = "has ended" if not service.is_alive else f"does not answer after {seconds:.0f} s"
            raise WorkerError(f"{service.name} {how}; the end of {service.log}:\n{tail_of(Path(service.log))}")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(service.pid, os.WNOHANG)
        time.sleep(0.1)


def tail_of(log: Path, num_lines: int = 8) -> str:
    """The last lines of a file."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])
    except OSError:
        return "(nothing was written)"


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on a port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((host, port))
            return True
    return False


def port_again(host: str, first: int, before: Service | None, taken: int | None = None) -> int:
    """The port of a server that has ended, which workers and runs still ask, as soon as it is free; else as `free_port`."""
    port = port_of(before)
    if port is None:
        return free_port(host, first, taken)
    end = time.monotonic() + RELEASE_SECONDS
    while not is_free(host, port):
        if time.monotonic() > end:
            return free_port(host, first, taken)
        time.sleep(0.05)
    return port


def port_of(service: Service | None) -> int | None:
    return urlsplit(service.url).port if service is not None and service.url else None


def free_port(host: str, first: int, taken: int | None = None) -> int:
    """The first port from `first` on that nobody listens on, nor is about to (`taken`).

    Raises:
        WorkerError: none among a hundred.
    """
    for port in range(first, first + 100):
        if port != taken and is_free(host, port):
            return port
    raise WorkerError(
        f"no free port from {first} to {first + 99} on {host}; give others with --prefect-port, --mlflow-port"
    )
