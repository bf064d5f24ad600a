"""The deployments of `deployments/prefect.yaml`, registered with a Prefect server; the one source of what they are.

Also what belongs to them on the server: work pools, and automations for runs that died or failed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from mot_core.errors import SpecError, StoreError
from mot_core.provenance import code_version, without_credentials

POOL, CPU_POOL = "mot", "mot-cpu"
POOLS = {
    POOL: "Runs that generate, train and evaluate; a worker a machine. Devices are bound by the runs themselves.",
    CPU_POOL: "Runs that need no device: merges by themselves, explanations of failures.",
}
EXPLAIN = "explain-failure/explain-failure"
TAG = "mot"
"""Of every deployment but the one that explains failures, which is not to explain its own."""
HEARTBEAT_SECONDS = 30
ATTEMPTS = 3
TRIGGERING_RUN = {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}
"""In full: of the template alone Prefect makes JSON, which a UUID refuses."""
NIGHTLY = {"MOT_NIGHTLY_CRON": "0 2 * * *", "MOT_NIGHTLY_TIMEZONE": "UTC"}
"""When the nightly ablation runs, unless the environment says otherwise."""


def prefect_file() -> Path:
    """The file that lists the deployments."""
    return Path(str(resources.files("deployments") / "prefect.yaml"))


def deploy(pool: str, cpu_pool: str, environment: Mapping[str, str]) -> str:
    """Register every deployment with the server that the environment names, and the automations; Prefect's own words.

    Raises:
        SpecError: a pool that the server does not have.
        StoreError: the server does not answer, or refuses.
    """
    given = {
        **NIGHTLY, **environment, "MOT_WORK_POOL": pool, "MOT_CPU_POOL": cpu_pool, "MOT_CODE_VERSION": code_version(),
        "MOT_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
    }  # fmt: skip
    _check_pools({pool, cpu_pool}, given)
    stopped = _stopped_schedules(given)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file())]
    for attempts_left in reversed(range(ATTEMPTS)):
        done = subprocess.run(command, env=given, capture_output=True, text=True)
        said = done.stdout + done.stderr
        # A server's SQLite is locked for moments while runs write; what is registered twice is registered once.
        if not done.returncode or not attempts_left or "503 Service Unavailable" not in said:
            break
        time.sleep(5)
    if done.returncode:
        raise StoreError(f"the deployments could not be registered at {given['PREFECT_API_URL']}:\n{said[-3000:]}")
    _stop_schedules(given, stopped)
    _register_automations(given)
    return said


def _stopped_schedules(environment: Mapping[str, str]) -> set[str]:
    """The deployments whose schedules somebody has switched off."""
    with _client(environment) as client:
        ours = [one for one in client.read_deployments(limit=200) if one.schedules and TAG in one.tags]
        return {one.name for one in ours if not any(schedule.active for schedule in one.schedules)}


def _stop_schedules(environment: Mapping[str, str], names: set[str]) -> None:
    """Switch off again what a registration has switched on: it makes schedules anew, and all of them active."""
    with _client(environment) as client:
        for one in client.read_deployments(limit=200) if names else []:
            for schedule in one.schedules if one.name in names and TAG in one.tags else []:
                client.update_deployment_schedule(one.id, schedule.id, active=False)


def is_registered(environment: Mapping[str, str]) -> bool:
    """Whether the server knows pools and deployments: with another database it has neither."""
    from prefect.exceptions import ObjectNotFound

    with _client(environment) as client:
        try:
            client.read_deployment_by_name(EXPLAIN)
        except ObjectNotFound:
            return False
        return set(POOLS) <= {pool.name for pool in client.read_work_pools()}


def make_pools(environment: Mapping[str, str]) -> None:
    """Create the pools that are not there; those that are stay as somebody set them."""
    from prefect.client.schemas.actions import WorkPoolCreate

    with _client(environment) as client:
        there = {pool.name for pool in client.read_work_pools()}
        for name, description in POOLS.items():
            if name not in there:
                client.create_work_pool(WorkPoolCreate(name=name, description=description, type="process"))


def _check_pools(names: set[str], environment: Mapping[str, str]) -> None:
    with _client(environment) as client:
        known = sorted(pool.name for pool in client.read_work_pools())
    missing = sorted(names - set(known))
    if missing:
        raise SpecError(
            f"there is no work pool {', '.join(missing)} at {environment['PREFECT_API_URL']}; it has "
            f"{', '.join(known) or 'none'}; create it: prefect work-pool create --type process {missing[0]}"
        )


@contextlib.contextmanager
def _client(environment: Mapping[str, str]) -> Iterator[Any]:
    """A client of the server that an environment names.

    Raises:
        SpecError: it names none.
        StoreError: the server does not answer, or refuses.
    """
    from httpx import HTTPError  # Prefect's own client, whose errors these are
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

    url = environment.get("PREFECT_API_URL")
    if not url:
        raise SpecError("PREFECT_API_URL is not set, so there is no server to register at; mot up starts one")
    names = {
        "PREFECT_API_URL": PREFECT_API_URL, "PREFECT_API_KEY": PREFECT_API_KEY,
        "PREFECT_API_AUTH_STRING": PREFECT_API_AUTH_STRING,
    }  # fmt: skip
    given = {setting: environment[name] for name, setting in names.items() if environment.get(name)}
    with temporary_settings(given), get_client(sync_client=True) as client:
        try:
            yield client
        except HTTPError as error:
            raise StoreError(f"the Prefect server at {without_credentials(url)}: {error}") from None


def _register_automations(environment: Mapping[str, str]) -> None:
    """Create them, or bring those of these names up to date."""
    with _client(environment) as client:
        explain = client.read_deployment_by_name(EXPLAIN)
        there = {one.name: one for one in client.read_automations()}
        for automation in automations(explain.id):
            if automation.name in there:
                automation.enabled = there[automation.name].enabled
                client.update_automation(there[automation.name].id, automation)
            else:
                client.create_automation(automation)


def automations(explain_id: Any) -> list[Any]:
    """What the server does by itself: a run whose process is gone without a word is crashed, which frees its place; of a
    run that failed or crashed, the cause is published, and told to MOT_FAILURE_WEBHOOK where a worker has it."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState, RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    ends = {
        f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")
    }
    of_ours = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    zombies = EventTrigger(
        after={"prefect.flow-run.heartbeat"}, expect={"prefect.flow-run.heartbeat", *ends},
        match={"prefect.resource.id": "prefect.flow-run.*"}, for_each={"prefect.resource.id"},
        posture=Posture.Proactive, threshold=1, within=timedelta(seconds=4 * HEARTBEAT_SECONDS),
    )  # fmt: skip
    failures = EventTrigger(
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}, match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=of_ours, for_each={"prefect.resource.id"}, posture=Posture.Reactive, threshold=1,
        within=timedelta(0),
    )  # fmt: skip
    return [
        AutomationCore(
            name="mot: runs whose process is gone", trigger=zombies,
            description="A flow run that sends no heartbeat any more is crashed; retried, it goes on from what is published.",
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: its process is gone")],
        ),
        AutomationCore(
            name="mot: failures explained", trigger=failures, description="Publishes the cause as the artifact `failures`.",
            actions=[
                RunDeployment(source="selected", deployment_id=explain_id, parameters={"flow_run_id": TRIGGERING_RUN})
            ],
        ),
    ]  # fmt: skip
