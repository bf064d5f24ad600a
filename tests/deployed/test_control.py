"""What a person does to a run from Prefect's page, by the same requests: cancel, pause, resume, retry; and what happens when
a process dies or runs other code. Real servers, a real worker, real training."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest

from flows.serving.services import start_of
from flows.serving.up import status
from mot_core.artifacts import Store
from mot_core.provenance import code_version
from tests.processes import comes_to, descendants, is_alive, wait_until
from tests.serving import PATIENCE, Served

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SILENCE_SECONDS = 120.0
"""Four heartbeats, after which the automation crashes a run."""


def parameters(steps: int, **changes: Any) -> dict[str, Any]:
    """A round of the smallest experiment, with one method; branches of their own by their number of steps."""
    overrides = ['methods=[{"name": "mot"}]', "evaluation.path.rounds=last"]
    return {"preset": "smoke", "rounds": 1, "steps_per_round": steps, "overrides": overrides, **changes}


def tasks_come_to(served: Served, run: str, states: dict[str, str]) -> None:
    """Wait until task runs are in these states: a server writes down what it is told of them when it comes to it."""
    comes_to(lambda: {name: served.tasks(run).get(name) for name in states}, states, PATIENCE)


@dataclass
class Abandoned:
    """A flow run whose process was killed while nobody watched it."""

    run: str
    killed: float


@pytest.fixture(scope="module", autouse=True)
def abandoned(served: Served) -> Abandoned:
    """Before everything else here, since the automation takes its two minutes: other tests pass them."""
    run = served.submit("experiment/experiment", parameters(100_000))
    pid = computing(served, run)
    below = descendants(pid)
    worker = status(served.home)["worker mot"]
    for victim in (worker.pid, pid):
        os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: not any(map(is_alive, [pid, *below])), 20, "the end of an abandoned run's processes")
    assert served.run(run)["state_type"] == "RUNNING"  # nobody is there to say otherwise
    served.up()
    assert status(served.home)["worker mot"].pid != worker.pid
    return Abandoned(run, killed)


def test_cancel_ends_every_process_within_ten_seconds_and_frees_the_device(served: Served) -> None:
    run = served.submit("experiment/experiment", parameters(100_000))
    pid = computing(served, run)
    processes = {one: start_of(one) for one in (pid, *descendants(pid))}
    served.set_state(run, "CANCELLING", "Cancelling", force=False)
    # Whatever computes, and holds a device, is below the flow run's own process, which still tells the server of its end.
    children = {one: began for one, began in processes.items() if one != pid}
    wait_until(lambda: not any(start_of(one) == began for one, began in children.items()), 10, "the children's end")
    wait_until(lambda: start_of(pid) != processes[pid], PATIENCE, "the flow run's process's end")
    assert served.ends(run, "CANCELLED")["state_name"] == "Cancelled"
    # What it held is free: the next run starts, finds what is published, and ends.
    after = served.submit("experiment/experiment", parameters(2))
    served.ends(after, "COMPLETED")
    tasks_come_to(served, after, {"generate running-total": "Reused"})


def test_a_paused_run_stops_at_the_next_published_step_and_goes_on_when_it_is_resumed(served: Served) -> None:
    before = {path.parent.name for path in served.store.glob("objects/*/manifest.json")}
    run = served.submit("experiment/experiment", parameters(80))
    pid = computing(served, run)
    timeout = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    served.set_state(run, "PAUSED", "Suspended", pause_timeout=timeout, pause_reschedule=True)
    wait_until(lambda: not is_alive(pid), PATIENCE, "the paused run's end")
    paused = served.run(run)
    assert (paused["state_type"], paused["state_name"]) == ("PAUSED", "Suspended")
    # The last word on the server is the pause and no heartbeat, or the automation would crash the run.
    wait_until(lambda: events(served, run)[-1] == "prefect.flow-run.Suspended", PATIENCE, "the pause, said once more")
    published = {path.parent.name: path.stat().st_mtime_ns for path in served.store.glob("objects/*/manifest.json")}
    branches = [
        one for one in map(Store(served.store).manifest, set(published) - before) if one and one.kind == "branch"
    ]
    assert len(branches) == 2  # whichever of the two came first: the other one was let to publish
    tasks_come_to(served, run, {"generate running-total": "Reused"})
    tasks = served.tasks(run)
    assert not any(name.startswith("evaluate") and state == "Completed" for name, state in tasks.items())

    assert served.ask(f"/flow_runs/{run}/resume", {})["status"] == "ACCEPT"
    served.ends(run, "COMPLETED")
    now = {path.parent.name: path.stat().st_mtime_ns for path in served.store.glob("objects/*/manifest.json")}
    assert {identity: now[identity] for identity in published} == published  # reused: nothing was written again
    assert len(now) > len(published)


def test_a_failed_branch_is_explained_and_a_retry_computes_it_alone(served: Served) -> None:
    run = served.submit("experiment/experiment", parameters(81))
    pid = computing(served, run)
    os.kill(workers_of(pid)[0], signal.SIGKILL)
    failed = served.ends(run, "FAILED")
    assert "signal 9" in failed["state"]["message"] or "SIGKILL" in failed["state"]["message"]

    def branches_of() -> dict[str, str]:
        return {name: state for name, state in served.tasks(run).items() if name.startswith("finetune")}

    # The other one was let to publish.
    wait_until(lambda: sorted(branches_of().values()) == ["Completed", "Failed"], PATIENCE, "both branches' ends")
    branches = branches_of()
    wait_until(lambda: any(told["flow_run_id"] == run for told in served.told), PATIENCE, "the webhook")
    (told,) = [told for told in served.told if told["flow_run_id"] == run]
    assert told["state"] == "Failed" and told["step"].startswith("finetune") and told["cause"]
    assert failed["name"] in told["text"]
    [table] = served.ask("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["failures"]}}})
    assert "finetune" in table["data"]

    served.set_state(run, "SCHEDULED", "AwaitingRetry", message="Retry from the UI")
    served.ends(run, "COMPLETED")
    tasks_come_to(
        served, run, {name: "Reused" if state == "Completed" else "Completed" for name, state in branches.items()}
    )


def test_a_worker_with_other_code_than_was_registered_refuses(served: Served) -> None:
    other = "0" * 40
    run = served.submit("experiment/experiment", parameters(2), job_variables={"env": {"MOT_DEPLOYED_COMMIT": other}})
    message = served.ends(run, "FAILED")["state"]["message"]
    assert other in message and code_version() in message


def test_wrong_values_of_the_form_fail_with_the_field_and_what_is_allowed(served: Served) -> None:
    run = served.submit("experiment/experiment", parameters(2, overrides=["training.batch_sise=4"]))
    assert "batch_size" in served.ends(run, "FAILED")["state"]["message"]


def test_a_run_whose_process_is_gone_is_crashed_and_a_retry_ends_it(served: Served, abandoned: Abandoned) -> None:
    left = SILENCE_SECONDS - (time.monotonic() - abandoned.killed)
    crashed = served.ends(abandoned.run, "CRASHED", max(left, 0.0) + PATIENCE)
    assert crashed["state"]["message"] == "no heartbeat: its process is gone"
    wait_until(lambda: any(told["flow_run_id"] == abandoned.run for told in served.told), PATIENCE, "the webhook")
    # A retry runs again from what is published. Its end is not waited for: its branches are the longest here.
    served.set_state(abandoned.run, "SCHEDULED", "AwaitingRetry")
    wait_until(lambda: served.run(abandoned.run)["state_type"] == "RUNNING", PATIENCE, "the retry")
    served.set_state(abandoned.run, "CANCELLING", "Cancelling", force=False)
    served.ends(abandoned.run, "CANCELLED")


def test_what_was_switched_off_stays_off_when_deployments_are_registered_again(served: Served) -> None:
    def schedule() -> dict[str, Any]:
        [found] = served.ask("/deployments/name/nightly-ablation/nightly-ablation")["schedules"]
        return dict(found)

    nightly = served.ask("/deployments/name/nightly-ablation/nightly-ablation")["id"]
    automations = {one["name"]: one["id"] for one in served.ask("/automations/filter", {})}
    explained = automations["mot: failures explained"]
    served.ask(f"/deployments/{nightly}/schedules/{schedule()['id']}", {"active": False}, "PATCH")
    served.ask(f"/automations/{explained}", {"enabled": False}, "PATCH")
    served.environment["PREFECT_API_URL"] = f"{served.prefect}/api"
    try:
        served.mot("deploy", "--pool", "mot", "--cpu-pool", "mot-cpu")
    finally:
        del served.environment["PREFECT_API_URL"]
    assert schedule()["active"] is False and served.ask(f"/automations/{explained}")["enabled"] is False
    served.ask(f"/deployments/{nightly}/schedules/{schedule()['id']}", {"active": True}, "PATCH")
    served.ask(f"/automations/{explained}", {"enabled": True}, "PATCH")


def test_of_nights_that_are_late_only_the_last_one_runs(served: Served) -> None:
    days_ago = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - days * 86_400)) for days in (2, 1)]
    late = [
        served.submit(
            "nightly-ablation/nightly-ablation", {"plan": "smoke"},
            state={"type": "SCHEDULED", "state_details": {"scheduled_time": then}},
        )
        for then in days_ago
    ]  # fmt: skip
    skipped = served.ends(late[0], "COMPLETED")
    assert skipped["state_name"] == "Skipped" and "one night does for both" in skipped["state"]["message"]
    wait_until(lambda: served.run(late[1])["state_type"] == "RUNNING", PATIENCE, "the later night")
    served.set_state(late[1], "CANCELLING", "Cancelling", force=False)
    served.ends(late[1], "CANCELLED")


def computing(served: Served, run: str) -> int:
    """Wait until a flow run trains two branches at once; its process."""
    pid = served.reaches(run, "finetune")
    wait_until(lambda: len(workers_of(pid)) == 2, PATIENCE, "two branches at once")
    return pid


def workers_of(pid: int) -> list[int]:
    """The processes below a flow run's that compute: the leaves of its tree."""
    below = descendants(pid)
    return sorted(child for child in below if not descendants(child))


def events(served: Served, run: str) -> list[str]:
    """What a flow run's events were, oldest first."""
    wanted = {"filter": {"resource": {"id": [f"prefect.flow-run.{run}"]}, "order": "ASC"}, "limit": 50}
    return [event["event"] for event in served.ask("/events/filter", wanted)["events"]]
