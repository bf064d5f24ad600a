"""Real servers for tests: on loopback, on ports that the kernel gives, each a process group that is gone when its test is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.processes import ROOT, wait_until

START_SECONDS = 300.0


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def healthy(url: str) -> bool:
    """Whether an address answers with 200."""
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def running(
    command: Sequence[str], root: Path, name: str, environment: Mapping[str, str], health: str
) -> Iterator[None]:
    """A server while the block takes, once it is healthy; what it prints is in `root/name.log`."""
    with (root / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=root)
    try:
        wait_until(lambda: healthy(health) or process.poll() is not None, START_SECONDS, f"the start of {name}")
        assert process.poll() is None, (root / f"{name}.log").read_text(errors="replace")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started and did not wait for
        wait_until(lambda: not healthy(health), 30, f"the end of {name}")


@contextlib.contextmanager
def prefect_server(home: Path, *options: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A Prefect server with a database of its own; `(API URL, environment of its clients)`."""
    port = free_port()
    environment = {
        **os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
    }  # fmt: skip
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), *options]
    url = f"http://127.0.0.1:{port}/api"
    with running(command, home, "prefect-server", environment, f"{url}/health"):
        yield url, {**environment, "PREFECT_API_URL": url}


MLFLOW_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Without nine processes for features that nothing here uses, whose imports slow a server's first answers down."""
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
"""For clients: by itself tracking gives a tracker that says nothing 4 s."""


@contextlib.contextmanager
def mlflow_server(root: Path, database: str) -> Iterator[str]:
    """An MLflow server over a database, its artifacts below `root`; its address."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", database, "--artifacts-destination", str(root / "artifacts"),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with running(command, root, "mlflow-server", {**os.environ, **MLFLOW_ENVIRONMENT}, f"{url}/health"):
        yield url
