"""What the deployed flows share: which code and store they run with, and how a pause in Prefect's UI reaches a run.

Invariant: nothing is computed by a worker whose code is not what was registered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.runtime import deployment, flow_run

from flows.deployed.parameters import shipped_key_servers
from flows.polling import every
from flows.run import RunOptions
from flows.serving.deploy import TAG
from mot_core.confinement import check_keys_within, check_paths_within, data_roots
from mot_core.errors import Halted, SpecError, StoreError
from mot_core.provenance import code_version
from mot_core.secrets import without_secrets
from mot_core.spec import Experiment
from tasks.invocation import Halt

Result = TypeVar("Result")
DEPLOYED_COMMIT, STORE, WORKERS = "MOT_DEPLOYED_COMMIT", "MOT_STORE", "MOT_WORKERS"
DIRECTORY = "MOT_DIRECTORY"
"""Where relative paths of a spec begin; absent: where Prefect starts the run, a folder of its own."""
POLL_SECONDS = 3.0
UNDER_WAY = (
    "Running", "Retrying", "Pending", "InfrastructurePending", "Submitting", "Late", "Resuming", "AwaitingRetry",
)  # fmt: skip
"""Names of states in which a flow run computes, or would if a worker had room."""


def within_deployment(work: Callable[[RunOptions], Result]) -> Result:
    """Do a deployed flow's work in this worker's directory, with its store and settings, stopping at the next published step
    when the flow run is paused; a run that is resumed goes on from there.

    Raises:
        SpecError: this worker's code is not what the deployment was registered from.
        StoreError: no store is named.
        Pause: the flow run was paused, and has stopped.
    """
    check_code()
    os.chdir(os.environ.get(DIRECTORY) or ".")
    options = RunOptions(store_of_worker(), workers_of_worker(), halt=Halt())
    with heeding_pause(options.halt) as paused:
        try:
            with without_secrets():
                done = work(options)
        except (Halted, Pause) as error:  # Prefect itself raises Pause where a task run begins under a paused flow run
            _confirm()
            if isinstance(error, Halted) and paused.state is not None:
                raise Pause(state=paused.state) from None
            raise
        _confirm()  # one that heeds no pause has ended all the same, and Prefect leaves it paused
        return done


def check_code() -> None:
    """Raise `SpecError` unless this worker runs the code that its deployment was registered from."""
    deployed, here = os.environ.get(DEPLOYED_COMMIT), code_version()
    if deployed and deployed != here:
        raise SpecError(
            f"the deployment was registered from {deployed}, but this worker's code is {here} ('+': with changes that are "
            "not committed); bring the worker to that commit, or register the deployments again from this one: mot deploy"
        )


def store_of_worker() -> Path:
    """The store that this worker's runs share.

    Raises:
        StoreError: MOT_STORE is not set.
    """
    root = os.environ.get(STORE)
    if not root:
        raise StoreError(
            f"{STORE} is not set in this worker's environment; start the worker with {STORE}=DIR, the store that all "
            "workers of the pool share (mot up does it)"
        )
    return Path(root)


def workers_of_worker() -> int | None:
    """How many processes a run may compute in, where MOT_WORKERS says so."""
    text = os.environ.get(WORKERS)
    if text and not (text.isdigit() and int(text)):
        raise SpecError(f"{WORKERS} is {text!r}; expected a whole number of worker processes, 1 or more")
    return int(text) if text else None


@dataclass
class Paused:
    """The state that somebody put the flow run into, once it is a pause."""

    state: State[Any] | None = None


@contextlib.contextmanager
def heeding_pause(halt: Halt) -> Iterator[Paused]:
    """Ask the server every few seconds for this flow run's state, and request a halt when it is a pause. A server that
    does not answer is asked again: it decides nothing about work that is under way."""
    paused, flow_run_id = Paused(), flow_run.id
    with get_client(sync_client=True) as client:

        def look() -> None:
            with contextlib.suppress(Exception):
                state = client.read_flow_run(flow_run_id).state
                if state is not None and state.is_paused():
                    paused.state = state
                    halt.request("paused; resume the flow run to go on", resumes=True)

        with every(POLL_SECONDS, look, "mot-pause"):
            yield paused


def _confirm() -> None:
    """Put the flow run into its pause once more, unless it was resumed or cancelled meanwhile: it went on sending heartbeats
    after the first time, and the automation for processes that are gone waits for another until it sees a pause."""
    with get_client(sync_client=True) as client:
        now = client.read_flow_run(flow_run.id).state
        if now is not None and now.is_paused():
            client.set_flow_run_state(flow_run.id, now, force=True)


def confined(spec: Experiment, options: RunOptions) -> Experiment:
    """A spec out of a form, once nothing in it names a file or folder outside what a form may name here, nor a server that
    a key is not for.

    Raises:
        SpecError: something does.
    """
    check_paths_within(spec, data_roots(options.store))
    check_keys_within(spec, shipped_key_servers())
    return spec


def occupied() -> str | None:
    """Whose flow run is under way, waits for a worker, or is late, beside this one and its deployment's other nights; None if
    nobody's. A server that does not answer says nothing: the night goes on without it."""
    busy = FlowRunFilterState(name=FlowRunFilterStateName(any_=list(UNDER_WAY)))
    this = flow_run.id
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        for one in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=busy), limit=200):
            # A flow run within a flow run is part of that, and `explain-failure` is a few seconds of ours.
            is_ours = str(one.id) == this or (one.deployment_id is not None and str(one.deployment_id) == deployment.id)
            if not is_ours and one.parent_task_run_id is None and TAG in one.tags:
                return f"run {one.name!r} ({one.state_name}) goes first"
    return None


def later_night() -> str | None:
    """Which later run of this flow run's own deployment, with the same parameters, is due, too, as after days without a worker;
    None if none is. A server that does not answer says nothing."""
    waiting = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled", *UNDER_WAY]))
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        this = client.read_flow_run(flow_run.id)
        due = this.expected_start_time
        after = FlowRunFilterExpectedStartTime(after_=due, before_=datetime.now(UTC))
        own = DeploymentFilter(id=DeploymentFilterId(any_=[UUID(deployment.id)]))
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=waiting, expected_start_time=after), deployment_filter=own, limit=50
        )
        for one in found:
            is_later = one.expected_start_time is not None and due is not None and one.expected_start_time > due
            if is_later and one.parameters == this.parameters:
                return f"run {one.name!r} of the same plan is later, and due: one night does for both"
    return None


def announce(line: str, num_steps: int) -> None:
    """Say in the flow run's log what is about to run."""
    get_run_logger().info("%s", line)
