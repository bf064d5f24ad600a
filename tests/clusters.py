"""A real Ray cluster for tests, on loopback: a head and a second node, each a process group of its own that ends with the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.processes import ROOT, descendants, is_alive, wait_until
from tests.servers import START_SECONDS, free_port

START_ATTEMPTS = 5
HEAD, SECOND = "127.0.0.2", "127.0.0.3"
"""Ray takes 127.0.0.1 for the machine's outer address; these it leaves as they are."""


@dataclass
class RayNode:
    """One node: `ray start --block` and everything below it."""

    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> list[int]:
        """The Ray workers that a task runs in now."""
        return [pid for pid, command in descendants(self.process.pid).items() if command.startswith("ray::")
                and not command.startswith(("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv", "ray::Desk"))]  # fmt: skip

    def runs(self) -> bool:
        """Whether the node has started, once that is known."""

        def told() -> bool:
            return "Ray runtime started" in self.log.read_text() or self.process.poll() is not None

        wait_until(told, START_SECONDS, "Ray's start")
        return self.process.poll() is None

    def end(self) -> None:
        """Kill the node at once, as a machine that is lost, and wait until all of it is gone."""
        below = [self.process.pid, *descendants(self.process.pid)]
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # what a node that did not start has left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(map(is_alive, below)), 30.0, f"something outlives its Ray node: {below}")


@dataclass
class RayCluster:
    address: str
    head: RayNode
    second: RayNode


@contextlib.contextmanager
def ray_cluster(environment: dict[str, str]) -> Iterator[RayCluster]:
    """A head and a second node, one CPU and one pretended GPU each, without a dashboard."""
    # Short: the path of a UNIX socket in it has 107 bytes at most.
    home = Path(tempfile.mkdtemp(prefix="mot-ray-"))
    port = free_port(HEAD)
    address = f"{HEAD}:{port}"
    started: list[RayNode] = []
    try:
        head = ["--head", f"--port={port}", f"--ray-client-server-port={free_port(HEAD)}", f"--temp-dir={home}/ray",
                "--include-dashboard=false"]  # fmt: skip
        for host, more in ((HEAD, head), (SECOND, [f"--address={address}"])):
            # Ray gives a node 30 seconds to start, which cannot be set and is little on a machine that is busy.
            for _ in range(START_ATTEMPTS):
                started.append(_start_node(host, more, environment, home))
                if started[-1].runs():
                    break
                started.pop().end()
            else:
                raise AssertionError((home / f"{host}.log").read_text()[-3000:])
        yield RayCluster(address, *started)
    finally:
        for node in reversed(started):
            node.end()
        shutil.rmtree(home)


def _start_node(host: str, more: list[str], environment: dict[str, str], home: Path) -> RayNode:
    # Ray's workers would run at niceness 15, and hardly at all beside a machine's other work.
    log = home / f"{host}.log"
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--block", f"--node-ip-address={host}", "--num-cpus=1",
        "--num-gpus=1", "--object-store-memory=80000000", "--disable-usage-stats", *more,
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**environment, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}, stdout=output, stderr=output,
            cwd=ROOT, start_new_session=True,
        )  # fmt: skip
    return RayNode(process, log)
