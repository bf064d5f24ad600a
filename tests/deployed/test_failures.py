"""Which of many failed task runs a flow run's failure is told to be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

import flows.deployed.failures as failures
from tests.serving import webhook

STOPPED = "WorkerError: the workers were stopped before this step ran"
CAUSE = "TrainingError: finetune ann: the loss is no number at step 3"


class Client:
    """A server with one failed flow run; of its task runs it gives pages, the newest first, as Prefect does."""

    def __init__(self, messages: list[str]) -> None:
        self.tasks = [
            SimpleNamespace(name=f"task {place}", end_time=f"12:00:{place:03d}", state=SimpleNamespace(message=message))
            for place, message in enumerate(messages)
        ]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *of: object) -> None:
        pass

    def read_flow_run(self, flow_run_id: Any) -> Any:
        return SimpleNamespace(
            name="a-run", state=SimpleNamespace(name="Failed", message=f"Flow run encountered an exception: {CAUSE}")
        )

    def read_task_runs(self, limit: int, offset: int = 0, **filters: Any) -> list[Any]:
        return self.tasks[::-1][offset : offset + limit]


@pytest.mark.parametrize("place", [0, 3, 449])
def test_the_cause_is_the_flow_runs_own_error_among_however_many(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [f"Task run encountered an exception {CAUSE if at == place else STOPPED}" for at in range(450)]
    monkeypatch.setattr(failures, "get_client", lambda sync_client: Client(told))
    found = failures.failure_of(uuid4())
    assert found["step"] == f"task {place}" and found["cause"].endswith(CAUSE)


def test_a_failure_is_told_to_web_addresses_alone() -> None:
    with webhook() as (address, told):
        failures.tell(address, {"run": "a", "state": "Failed", "cause": "c"})
        assert told == [{"text": "mot: a Failed: c", "run": "a", "state": "Failed", "cause": "c"}]
    with pytest.raises(ValueError, match="no http:// or https:// address"):
        failures.tell("file:///etc/passwd", {"run": "a", "state": "Failed", "cause": "c"})
