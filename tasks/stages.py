"""One Prefect task a stage. Each obtains published steps through a worker and returns small records.

The same tasks run on this machine and on a Ray cluster: what differs is in their parameter (`Here`, `tasks.cluster.Away`).

Prefect's own result cache stays off: the published manifest is the only truth about what is done. There are no
retries: a killed or failed run goes on from what is published when it is started again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from mot_core.errors import WorkerError
from mot_core.steps import Step
from mot_core.workers.pool import WorkerPool
from tasks.invocation import Here, Invocation

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

    from tasks.cluster import Away

Small = list[tuple[str, bool]]
"""What a task hands on: each step's identity, and whether it was reused."""


def submit(
    invocation: Invocation, task: Any, steps: list[Step], upstream: list[PrefectFuture[Any]],
    shard: tuple[int, int] | None = None,
) -> PrefectFuture[Any] | None:  # fmt: skip
    """A task run that obtains steps, or does a part of their work, after others; None if that is done already."""
    identities = [step.identity for step in steps]
    here = Here(invocation.run_id, identities, shard)
    if isinstance(invocation.pool, WorkerPool):
        future: PrefectFuture[Any] = task.submit(here, upstream)
        return future
    if invocation.missing(identities):
        return invocation.pool.submit(invocation, task, steps, upstream, shard)
    task(here, [], return_state=True)  # nothing to compute: no node need be asked
    return None


def wait_for(invocation: Invocation, futures: list[PrefectFuture[Any]]) -> None:
    """Wait until task runs have ended and the invocation knows what they did."""
    for future in futures:
        future.wait()
        if invocation.failure is None and future.state.is_crashed():
            invocation.fail(
                WorkerError(f"a task run crashed: {future.state.message}; run the same command again: it goes on")
            )
    if not isinstance(invocation.pool, WorkerPool):
        invocation.pool.settle()


def _obtain(work: Here | Away) -> State[Any]:
    """The task's final state: 'Reused' if nothing was computed, else 'Completed'."""
    logger = get_run_logger()
    reused = work.obtain(lambda line: logger.info("%s", line))
    if work.shard is not None:
        return Completed(message="a part of the step's work is done", data=[])
    small = list(zip(work.identities, reused, strict=True))
    if all(reused):
        return Completed(name="Reused", message="published before; nothing was computed", data=small)
    return Completed(message=f"{reused.count(False)} step(s) computed", data=small)


def _stage(name: str) -> Any:
    def stage(work: Here | Away, upstream: list[Small]) -> State[Any]:
        return _obtain(work)

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
