"""Why a flow run failed, from what Prefect's server knows of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType, TaskRun

PAGE = 200
"""Prefect's own limit of one answer."""


def failure_of(flow_run_id: UUID) -> dict[str, str]:
    """A flow run's name, its state's message, and the first of its task runs that failed with what that said."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        failed = list(_failed_tasks(client, flow_run_id))
    message = (run.state.message if run.state else None) or ""
    # The flow run ends with the first failure's error; what waited for a place says, in the same moment, that it was stopped.
    first = min(failed, key=lambda task: (not _is_same(message, task), str(task.end_time)), default=None)
    return {
        "run": run.name, "state": str(run.state.name if run.state else "unknown"),
        "message": message, "step": str(first.name) if first else "",
        "cause": (first.state.message if first and first.state else None) or "",
        "next": "retry the run: it goes on from what is published", "flow_run_id": str(flow_run_id),
    }  # fmt: skip


def _failed_tasks(client: Any, flow_run_id: UUID) -> Iterator[TaskRun]:
    states = TaskRunFilterStateType(any_=[StateType.FAILED, StateType.CRASHED])
    for first in itertools.count(step=PAGE):
        page = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
            task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=states)), limit=PAGE, offset=first,
        )  # fmt: skip
        yield from page
        if len(page) < PAGE:
            return


def _is_same(message: str, task: TaskRun) -> bool:
    """Whether a task run's error is the one that a flow run's message tells of; Prefect words the beginning of each differently."""
    told = (task.state.message if task.state else None) or ""
    error = told.rpartition("Task run encountered an exception ")[2].strip()
    return bool(error) and error[:200] in message


def tell(address: str, failure: dict[str, Any]) -> None:
    """Post a failure, as JSON with a `text` that chat services show, to an http(s) address.

    Raises:
        ValueError: another kind of address.
        OSError: nobody took it.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError("MOT_FAILURE_WEBHOOK is no http:// or https:// address")
    body = {"text": "mot: {run} {state}: {cause}".format(**failure), **failure}
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=20):
        pass
