"""What `mot up` starts, for tests: in a fresh folder, on free ports, stopped by what started it, with nothing left behind.

Its addresses are asked as Prefect's page asks them. Workers look for runs every other second.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from flows.serving.authentication import PREFECT_AUTH
from flows.serving.services import start_of
from tests.processes import ROOT
from tests.servers import MLFLOW_PATIENCE, free_port

PATIENCE = float(os.environ.get("MOT_TEST_PATIENCE", "900"))
"""Seconds for what takes ten to thirty on a quiet machine, a whole small run among them."""
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Served:
    """Running servers, and what a page asks of them."""

    home: Path
    store: Path
    environment: dict[str, str]
    prefect: str = ""
    mlflow: str = ""
    told: list[dict[str, Any]] = field(default_factory=list)
    """What was posted to MOT_FAILURE_WEBHOOK."""

    def mot(self, *arguments: str) -> str:
        """The command `mot`; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "flows", *arguments], env=self.environment, cwd=self.home.parent, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> None:
        """Start what is not running, and learn the addresses."""
        # Ports that the kernel gives: between looking and listening, `up` of another session may find the same one free.
        ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
        said = self.mot("up", "--home", str(self.home), "--store", str(self.store), *ports)
        links = dict(line.split(maxsplit=1) for line in said.splitlines())
        self.prefect, self.mlflow = links["Prefect"], links["MLflow"]

    def down(self) -> None:
        """Stop it, and see that nothing of it is left."""
        self.mot("down", "--home", str(self.home))
        assert not self.processes()

    def processes(self) -> dict[int, str]:
        """Every living process that was started with this home, with its command line: servers, workers, runs, children."""
        mark, found = f"PREFECT_HOME={self.home / 'prefect'}\0".encode(), {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The answer of Prefect's API."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **authorization(self.environment.get(PREFECT_AUTH))}
        request = Request(f"{self.prefect}/api{path}", data, headers, method=method)
        for attempts_left in reversed(range(10)):
            try:
                with urlopen(request, timeout=120) as response:
                    return json.loads(response.read() or b"null")
            except HTTPError as error:
                # SQLite is locked while runs write, for up to a minute; Prefect's own clients ask again, too.
                if error.code != 503 or not attempts_left:
                    raise
                time.sleep(1)
        return None

    def submit(self, deployment: str, parameters: Mapping[str, Any], **more: Any) -> str:
        """Start a deployment's run as the form does; the flow run's id."""
        found = self.ask(f"/deployments/name/{deployment}")
        body = {
            "parameters": {"parameters": parameters},
            "state": {"type": "SCHEDULED"},
            "enforce_parameter_schema": True,
        }
        return str(self.ask(f"/deployments/{found['id']}/create_flow_run", {**body, **more})["id"])

    def set_state(self, run: str, type_: str, name: str, *, force: bool = True, **details: Any) -> None:
        """Put a flow run into a state, as the page's buttons do."""
        body = {"state": {"type": type_, "name": name, "state_details": details}, "force": force}
        assert self.ask(f"/flow_runs/{run}/set_state", body)["status"] == "ACCEPT"

    def run(self, run: str) -> dict[str, Any]:
        """A flow run."""
        found: dict[str, Any] = self.ask(f"/flow_runs/{run}")
        return found

    def tasks(self, run: str) -> dict[str, str]:
        """A flow run's task runs: the state's name by the run's; of several with one name, the newest's."""
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        return {task["name"]: task["state_name"] for task in self.ask("/task_runs/filter", wanted)}

    def artifacts(self, run: str) -> dict[str, str]:
        """A flow run's artifacts: text by key."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 100}
        return {one["key"]: one["data"] for one in self.ask("/artifacts/filter", wanted) if one["key"]}

    def ends(self, run: str, as_: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until a flow run has ended; fail unless it ended in a state of this type."""
        end = time.monotonic() + seconds
        while (found := self.run(run))["state_type"] not in ENDED or found["state_type"] != as_:
            assert found["state_type"] not in ENDED, f"{found['state']}\n{self.log()}"
            assert time.monotonic() < end, f"{as_}: not within {seconds} s, but {found['state']}\n{self.log()}"
            time.sleep(0.2)
        return found

    def reaches(self, run: str, task: str, seconds: float = PATIENCE) -> int:
        """Wait until a task run whose name begins so is running; the pid of the flow run's process."""
        end = time.monotonic() + seconds
        while not any(name.startswith(task) and state == "Running" for name, state in self.tasks(run).items()):
            state = self.run(run)["state"]
            assert state["type"] not in ENDED, f"{state}\n{self.log()}"
            assert time.monotonic() < end, f"{task}: not within {seconds} s\n{self.log()}"
            time.sleep(0.1)
        return self.pid(run)

    def pid(self, run: str) -> int:
        """The process of a flow run, by what the worker gave it in its environment."""
        mark = f"PREFECT__FLOW_RUN_ID={run}\0".encode()
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        assert found, f"flow run {run} has no process\n{self.log()}"
        return min(found, key=lambda pid: start_of(pid) or math.inf)

    def log(self) -> str:
        """The end of the worker's log, for a failure's message."""
        path = self.home / "logs" / "mot-worker.log"
        return path.read_text()[-3000:] if path.is_file() else ""


def authorization(user_and_password: str | None) -> dict[str, str]:
    """The header that says who asks."""
    return {"Authorization": f"Basic {b64encode(user_and_password.encode()).decode()}"} if user_and_password else {}


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Served]:
    """`mot up` in an empty folder, with more variables; at the end `mot down`, and a look at what is left."""
    with webhook() as (address, told):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))
        }
        own = {
            "PYTHONPATH": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "2", "MOT_FAILURE_WEBHOOK": address, "MOT_WORKERS": "2",
            **MLFLOW_PATIENCE,
        }  # fmt: skip
        served = Served(folder / "home", folder / "store", {**kept, **own, **environment}, told=told)
        try:
            served.up()
            yield served
        finally:
            served.down()


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A chat service on loopback: its address, and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
