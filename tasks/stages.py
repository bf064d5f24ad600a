"""One Prefect task a stage. Each obtains published steps through a worker and returns small records.

Prefect's own result cache stays off: the published manifest is the only truth about what is done. There are no
retries: a killed or failed run goes on from what is published when it is started again.
"""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from mot_core.steps import Step
from tasks.invocation import invocation_of

Records = list[dict[str, Any]]


def _obtain(run_id: str, identities: list[str]) -> State[Any]:
    """The task's final state: 'Reused' if nothing was computed, else 'Completed', with the steps' records."""
    invocation = invocation_of(run_id)
    logger = get_run_logger()

    def watch(step: Step, event: dict[str, Any]) -> None:
        if "line" in event:
            logger.info("%s", event["line"])
        invocation.watch(step, event)

    records = invocation.obtain(identities, watch)
    small = [{"identity": record.identity, "kind": record.kind, "reused": record.reused} for record in records]
    if all(record.reused for record in records):
        return Completed(name="Reused", message="published before; nothing was computed", data=small)
    return Completed(message=f"{sum(not record.reused for record in records)} step(s) computed", data=small)


def _stage(name: str) -> Any:
    def stage(run_id: str, identities: list[str], upstream: list[Records]) -> State[Any]:
        return _obtain(run_id, identities)

    stage.__name__ = name.replace("-", "_")
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)(stage)


draw = _stage("draw problems")
generate = _stage("generate")
verify = _stage("verify")
match = _stage("build corpora")
finetune = _stage("finetune")
merge = _stage("merge")
evaluate = _stage("evaluate")
probe = _stage("probe")

TASKS = {
    "problems": draw, "overlap": draw, "training-problems": draw, "completions": generate, "verdicts": verify, "judgements": verify,
    "corpora": match, "shuffled-corpora": match, "branch": finetune, "on-policy": finetune, "merge": merge,
    "evaluation": evaluate, "harness": evaluate,
    "confidence": probe, "landscape": probe,
}  # fmt: skip
