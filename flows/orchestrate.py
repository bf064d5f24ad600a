"""The experiment as a Prefect flow: the same algorithm, with each `do` a task run.

Invariant: this process holds records and ids only; it never imports torch and never forks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.experiment import Evaluated, Outline, experiment
from mot_core.secrets import without_secrets
from mot_core.spec import Experiment
from mot_core.steps import Step, can_be_sharded
from mot_core.workers.pool import WorkerPool
from tasks.artifacts import report, score_table, study_report
from tasks.guard import guard_server
from tasks.invocation import Invocation, invocation_of
from tasks.stages import TASKS, submit, wait_for

# A thread a task run: each only waits for a worker, and the pool of workers decides who computes.
MAX_WAITING_TASKS = 512


class Submitter:
    """`do` for a running flow: one task run a call, or a few where a student's benchmarks are sharded, after the task
    runs that it depends on."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.seen: set[str] = set()
        self.futures: dict[str, PrefectFuture[Any]] = {}

    def __call__(self, *steps: Step) -> None:
        lacking, known = self.invocation.lacking, self.seen
        wanted = {step.identity: step for step in steps if step.identity not in known or step.identity in lacking}
        for job in shards_of(list(wanted.values()), self.invocation.shards):
            self._submit({step.identity: step for step in job})

    def _submit(self, wanted: dict[str, Step]) -> None:
        first = next(iter(wanted.values()))
        parents = [parent for step in wanted.values() for _, parent in step.parents if parent.identity not in wanted]
        upstream = self.futures_of([parent.identity for parent in parents])
        name = first.label if len(wanted) == 1 else _group_label(list(wanted.values()))
        self.invocation.steps.update(wanted)
        self.invocation.lacking.difference_update(wanted)
        self.seen.update(wanted)
        task = TASKS[first.kind].with_options(task_run_name=name)
        upstream += self._shards_first(first, upstream)
        future = submit(self.invocation, task, list(wanted.values()), upstream)
        if future is not None:
            self.futures.update(dict.fromkeys(wanted, future))

    def _shards_first(self, step: Step, upstream: list[PrefectFuture[Any]]) -> list[PrefectFuture[Any]]:
        """Task runs that each do a part of a step's work before it, where that is asked for, helps and is not done."""
        count = self.invocation.shards
        if count == 1 or not can_be_sharded(step) or not self.invocation.missing([step.identity]):
            return []
        futures = []
        for index in range(count):
            task = TASKS[step.kind].with_options(task_run_name=f"{step.label}, shard {index + 1} of {count}")
            futures.append(submit(self.invocation, task, [step], upstream, (index, count)))
        return [future for future in futures if future is not None]

    def futures_of(self, identities: Iterable[str]) -> list[PrefectFuture[Any]]:
        """The task runs that obtain these steps, each once; what was done when it was submitted has none."""
        futures = [self.futures[identity] for identity in identities if identity in self.futures]
        return list({id(future): future for future in futures}.values())


def shards_of(steps: list[Step], num_shards: int) -> list[list[Step]]:
    """The jobs that steps of one call make: one, or of evaluations as many as asked for, a benchmark's in one job."""
    if not steps or any(step.kind not in ("evaluation", "harness") for step in steps):
        return [steps] if steps else []
    benchmarks = list(dict.fromkeys(step.facts["benchmark"] for step in steps))
    shards = [set(benchmarks[first::num_shards]) for first in range(min(num_shards, len(benchmarks)))]
    return [[step for step in steps if step.facts["benchmark"] in shard] for shard in shards]


def _group_label(steps: list[Step]) -> str:
    facts = steps[0].facts
    if steps[0].kind == "evaluation":
        where = f" round {facts['round']}" if facts["round"] else ""
        what = ", ".join(dict.fromkeys(step.facts["benchmark"] for step in steps))
        return f"evaluate {facts['method']}{where}, seed {facts['seed']}: {what}"
    return f"{steps[0].kind} × {len(steps)}"


def waiting_threads() -> Any:
    """The task runner of every flow here."""
    return ThreadPoolTaskRunner(max_workers=MAX_WAITING_TASKS)


def _flow(name: str) -> Any:
    return flow(
        name=name,
        flow_run_name="{run_id}",
        validate_parameters=False,
        persist_result=False,
        task_runner=waiting_threads(),
    )


def in_flow_run(of: Any, invocation: Invocation, *arguments: Any) -> None:
    """Run a flow under an invocation, its tasks where the invocation's steps are computed: as a flow run of its own, or
    within one that is under way, such as a deployment's, as its body."""
    pool = invocation.pool
    if not isinstance(pool, WorkerPool):
        of.with_options(task_runner=pool.task_runner())(*arguments, invocation.run_id)
    elif FlowRunContext.get() is None:
        of(*arguments, invocation.run_id)
    else:
        of.fn(*arguments, invocation.run_id)


@_flow("mot-experiment")  # type: ignore[untyped-decorator]
def run_experiment(spec: dict[str, Any], run_id: str) -> None:
    """Run the experiment of a spec under a registered invocation, until every step is published.

    Raises:
        MotError: the first failure, once the steps that were computing have ended.
    """
    invocation = invocation_of(run_id)
    invocation.flow_run_id = str(flow_run.id)
    guard_server()
    experiment_spec = Experiment.model_validate(spec)
    assert invocation.world is not None
    do = Submitter(invocation)
    outline = experiment(experiment_spec, invocation.world, do)
    for round_index, evaluated in by_round(outline).items():
        identities = [step.identity for one in evaluated for *_, step in one.evaluations]
        wait_for(invocation, do.futures_of(identities))
        if invocation.failure is None:
            table = score_table.with_options(task_run_name=f"score table, round {round_index}")
            table(run_id, experiment_spec.name, round_index, identities, return_state=True)
    raise_first_failure(invocation, do)
    report(run_id, experiment_spec.name)


@_flow("mot-tune")  # type: ignore[untyped-decorator]
def run_sweep(spec: dict[str, Any], run_id: str) -> None:
    """Run a tuning sweep under a registered invocation, until every evaluation is published."""
    from flows.tune import sweep_specs

    invocation = invocation_of(run_id)
    guard_server()
    assert invocation.world is not None
    do = Submitter(invocation)
    for variant in sweep_specs(Experiment.model_validate(spec)).values():
        experiment(variant, invocation.world, do, touch_test=False)
    raise_first_failure(invocation, do)


@_flow("mot-part")  # type: ignore[untyped-decorator]
def run_part(identities: list[str], run_id: str) -> None:
    """Run some of a registered invocation's steps, given parents first, until they are published.

    Raises:
        MotError: the first failure, once the steps that were computing have ended.
    """
    invocation = invocation_of(run_id)
    invocation.flow_run_id = str(flow_run.id)
    guard_server()
    do = Submitter(invocation)
    for identity in identities:
        do(invocation.steps[identity])
    raise_first_failure(invocation, do)


@_flow("mot-study")  # type: ignore[untyped-decorator]
def run_study(name: str, run_id: str) -> None:
    """Run a study's phases under a registered invocation, then conclude it.

    Raises:
        MotError: the first failure, once the steps that were computing have ended.
    """
    invocation = invocation_of(run_id)
    invocation.flow_run_id = str(flow_run.id)
    guard_server()
    do = Submitter(invocation)
    for submit_phase in invocation.phases:
        with without_secrets():  # it may draw problems
            submit_phase(do)
        raise_first_failure(invocation, do)
    study_report(run_id, name)


def by_round(outline: Outline) -> dict[float, list[Evaluated]]:
    """The evaluated students by round, in order."""
    rounds = sorted({evaluated.round_index for evaluated in outline.students})
    return {r: [evaluated for evaluated in outline.students if evaluated.round_index == r] for r in rounds}


def raise_first_failure(invocation: Invocation, do: Submitter) -> None:
    """Wait for every task run; raise the first cause of failure, not what followed from it."""
    wait_for(invocation, do.futures_of(do.futures))
    if invocation.failure is not None:
        raise invocation.failure
