"""Kill what a run stands on, at seeded moments, twenty times: `make chaos`. Not a test of the gate.

Each run of the preset `smoke` has a store of its own. At a moment drawn from the seed one of five victims is killed with
SIGKILL: the process of a step, the flow run's, the Prefect worker's, the Prefect server, the MLflow server. Then `mot up`
brings back what is missing, and a run that crashed or failed is retried, as a person would. At the end of each:
the students' hashes are those of an undisturbed run, the tracker has it, and no step was computed again once published.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.run import RunOptions, run
from flows.serving.services import Service
from flows.serving.up import UpOptions, down, read_state, up
from mot_core.artifacts import Store
from mot_core.provenance import code_version
from mot_core.spec_files import load_spec
from tasks.tracking import track_pending
from tests.processes import count_published, descendants, wait_until

VICTIMS = ("step", "flow run", "worker", "prefect", "mlflow")
RUN_SECONDS = 1200.0
LAST_STEPS = 6
"""Of a run, that may be published at once at its end: no moment is drawn among them, so that there is always something to kill."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mot-chaos-"))
    options = UpOptions(folder / "home", folder / "tracked", prefect_port=4400, mlflow_port=5400)
    expected, num_steps = undisturbed(folder / "expected")
    draw = random.Random(given.seed)
    failures = []
    try:
        for number in range(given.runs):
            victim, share = VICTIMS[number % len(VICTIMS)], draw.random()
            up(options)
            store = folder / f"store-{number}"
            told, problems = one_run(options, store, victim, 1 + int(share * (num_steps - LAST_STEPS)))
            os.environ["MLFLOW_TRACKING_URI"] = str(read_state(options.home.resolve()).services["mlflow"].url)
            problems += what_is_wrong(store, expected)
            del os.environ["MLFLOW_TRACKING_URI"]  # `up` starts its own
            print(f"run {number + 1}: {told}; {'; '.join(problems) or 'as undisturbed'}", flush=True)
            failures += problems
            shutil.rmtree(store)
    finally:
        down(options.home)
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(f"{len(failures)} problem(s)" if failures else 0)


def undisturbed(store: Path) -> tuple[dict[str, Any], int]:
    """The students' hashes, and how many steps lead to them."""
    run_dir = run(load_spec("smoke"), RunOptions(store, workers=2))
    return students_of(run_dir), count_published(store)


def students_of(run_dir: Path) -> dict[str, Any]:
    students = json.loads((run_dir / "summary.json").read_text())["students"]
    return {f"{method} {seed}": row["sha256"] for method, seeds in students.items() for seed, row in seeds.items()}


def one_run(options: UpOptions, store: Path, victim: str, after_steps: int) -> tuple[str, list[str]]:
    """Start a run, kill the victim once so many steps are published, bring all back until the run has ended well; what
    happened, and what should not have."""
    with server(options) as client:
        deployment = client.read_deployment_by_name("experiment/experiment")
        environment = {
            **deployment.job_variables["env"],
            "MOT_STORE": str(store),
            "MOT_DEPLOYED_COMMIT": code_version(),
        }
        made = client.create_flow_run_from_deployment(
            deployment.id, parameters={"parameters": {"preset": "smoke"}}, job_variables={"env": environment}
        )
    end = time.monotonic() + RUN_SECONDS
    while count_published(store) < after_steps and time.monotonic() < end:
        time.sleep(0.05)
    killed = kill(victim, options, store)
    told = f"{victim} {killed or 'never found'} after {after_steps} steps"
    problems = [] if killed else ["nothing was killed"]
    retries = 0
    while time.monotonic() < end:
        up(options)
        state = state_of(options, made.id)
        if state == "COMPLETED":
            return f"{told}, {retries} retries", problems
        if state in ("FAILED", "CRASHED"):
            retry(options, made.id)
            retries += 1
        time.sleep(2)
    return f"{told}, {retries} retries", [*problems, f"not completed ({state})"]


def kill(victim: str, options: UpOptions, store: Path) -> str | None:
    """Kill one process of a kind; what was hit. None where the run ended before there was one."""
    services = read_state(options.home.resolve()).services
    if victim in ("prefect", "mlflow", "worker"):
        service = services["worker mot" if victim == "worker" else victim]
        service.signal(signal.SIGKILL)
        wait_until(lambda: not service.is_alive, 30, "the victim's end")
        return "process"
    command = {"flow run": "prefect.engine", "step": "mot_core.workers.parent"}[victim]
    while not any(store.glob("runs/*/summary.json")):
        fitting = [pid for pid, line in descendants(services["worker mot"].pid).items() if command in line]
        if fitting:
            os.kill(max(fitting), signal.SIGKILL)
            return f"pid {max(fitting)}"
        time.sleep(0.01)
    return None


@contextmanager
def server(options: UpOptions) -> Iterator[Any]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = f"{prefect_of(options).url}/api"
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        yield client


def prefect_of(options: UpOptions) -> Service:
    return read_state(options.home.resolve()).services["prefect"]


def state_of(options: UpOptions, flow_run_id: UUID) -> str:
    with server(options) as client:
        state = client.read_flow_run(flow_run_id).state
    return str(state.type.value) if state else "none"


def retry(options: UpOptions, flow_run_id: UUID) -> None:
    """What the page's Retry does."""
    from prefect.states import AwaitingRetry

    with server(options) as client:
        client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)


def what_is_wrong(store: Path, expected: dict[str, Any]) -> list[str]:
    """What a finished run has that an undisturbed one has not; a line each."""
    found = Store(store)
    problems = [f"{m.label}: {line}" for m in found.manifests() for line in found.damaged_files(m)]
    for path in (store / "logs").glob("*.log"):
        identity = path.stem
        times = len(re.findall(r": published after [\d.]+ s", "\n".join(own_lines(path, found, identity))))
        if times > 1:
            problems.append(f"{identity} was published {times} times")
    runs = sorted((store / "runs").iterdir())
    finished = [run_dir for run_dir in runs if (run_dir / "summary.json").is_file()]
    if not finished:
        return [*problems, "no run has a summary"]
    if students_of(finished[-1]) != expected:
        problems.append("the students differ")
    return problems + [f"not logged: {one.problem}" for one in track_pending(found) if one.problem]


def own_lines(path: Path, store: Store, identity: str) -> list[str]:
    """A log's lines about its own step: steps of one job share their output."""
    manifest = store.manifest(identity)
    label = manifest.label if manifest is not None else identity
    return [line for line in path.read_text(errors="replace").splitlines() if f"{label}: published after" in line]


if __name__ == "__main__":
    main()
