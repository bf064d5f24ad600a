"""With a Prefect server: runs, names, reused states and artifacts, as its API (and so its UI) shows them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.pico import pico_experiment
from tests.processes import ROOT, comes_to, write_spec
from tests.servers import prefect_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A real Prefect server on loopback; `(API URL, environment of its clients)`."""
    with prefect_server(tmp_path_factory.mktemp("prefect-server")) as running:
        yield running


def ask(url: str, path: str, body: dict[str, Any]) -> Any:
    request = Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as response:
        return json.loads(response.read())


def test_task_runs_are_named_after_what_they_do_and_a_second_run_is_reused(
    server: tuple[str, dict[str, str]], pico_models: Path, tmp_path: Path
) -> None:
    url, environment = server
    spec = write_spec(
        tmp_path / "spec.yaml",
        pico_experiment(pico_models, methods=[{"name": "std"}, {"name": "mot"}]).model_dump(mode="json"),
    )
    for _ in range(2):
        command = [sys.executable, "-W", "ignore", "-m", "tests.drive", str(spec), str(tmp_path / "store")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    flows = ask(url, "/flow_runs/filter", {"sort": "START_TIME_ASC"})
    assert [flow["state_type"] for flow in flows] == ["COMPLETED", "COMPLETED"]
    assert [flow["name"][-3:] for flow in flows] == ["001", "002"]

    def states_of(flow: dict[str, Any]) -> dict[str, str]:
        runs = ask(url, "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow["id"]]}}, "limit": 200})
        return {run["name"]: run["state_name"] for run in runs}

    def of_stages(states: dict[str, str]) -> set[str]:
        return {state for name, state in states.items() if not name.startswith(("score table", "compare"))}

    # What becomes of a task run is told in events, which the server writes down when it comes to them.
    for flow, state in zip(flows, ("Completed", "Reused"), strict=True):
        comes_to(lambda flow=flow: of_stages(states_of(flow)), {state})
    first, second = map(states_of, flows)
    assert any(name.startswith("finetune ") and "mot round 2" in name for name in first)
    assert {name for name in first if not name.startswith(("score table", "compare"))} <= set(second)
    artifacts = ask(url, "/artifacts/filter", {"limit": 50})
    keys = {artifact["key"] for artifact in artifacts}
    assert any(key.startswith("links-") for key in keys)
    table = next(artifact for artifact in artifacts if artifact["key"].endswith("round-2"))
    assert "| mot | " in table["data"]
