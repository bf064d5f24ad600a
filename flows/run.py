"""One invocation from spec to report: what `mot run` does, as a Python call.

The order matters: everything that can be refused is refused first; workers start only if a step is missing, and
before Prefect is imported, so that both load at the same time; the summary is written before anything that may
fail without harm (tracking).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.experiment import Outline, experiment
from flows.index import final_students, index_of, kept_of
from mot_core.artifacts import Published, Store
from mot_core.errors import SpecError
from mot_core.files import explain_disk_errors, write_atomically
from mot_core.prepare import prepare
from mot_core.retention import Place
from mot_core.runs import SUMMARY, new_run_dir, write_index
from mot_core.spec import Experiment
from mot_core.spec_files import spec_to_yaml
from mot_core.steps import Step, walk
from mot_core.workers.pool import REMEDY, WorkerPool, union_seconds
from mot_core.world import World, resolve
from tasks.invocation import Halt, Invocation, Watcher, forget, register

if TYPE_CHECKING:
    from tasks.cluster import Cluster

Announce = Callable[[str, int], None]
"""Told once, before anything runs: a line for people, and the number of steps."""


@dataclass(frozen=True)
class RunOptions:
    """How to run, never what: none of these enters an identity."""

    store: Path = Path("store")
    workers: int | None = None
    checkpoint_seconds: float = 60.0
    halt: Halt = field(default_factory=Halt)
    ray: str | None = None
    """A Ray cluster in place of this machine's workers: `auto`, `HOST:PORT` or `ray://HOST:PORT`."""
    shards: int = 1
    """Jobs that each student's benchmarks, and each teacher's requests, are split into, each of which loads the model: for
    more places than models."""
    tracked: bool = True
    """Off where a store goes away after the run: the tracker would name students that are gone."""


def pool_of(store: Store, options: RunOptions) -> WorkerPool | Cluster:
    """Where steps are computed: this machine's workers, or a cluster's, which has to answer now.

    Raises:
        SpecError: no such cluster, or nothing to talk to it with.
    """
    if options.ray is None:
        return WorkerPool(store, options.workers, options.checkpoint_seconds)
    if options.workers is not None:
        raise SpecError(
            "--workers is for this machine's workers; under --ray the nodes' CPUs and GPUs say how many run"
        )
    quiet_prefect()
    try:
        from tasks.cluster import Cluster
    except ImportError as error:
        raise SpecError(f"--ray needs the package prefect-ray ({error}): pip install 'mot[ray]'") from error
    return Cluster(options.ray, store, options.checkpoint_seconds)


def outline_of(spec: Experiment, world: World, touch_test: bool = True) -> tuple[Outline, list[Step]]:
    """The experiment's nodes and all of its steps, parents first, with nothing run."""
    steps: list[Step] = []
    outline = experiment(spec, world, lambda *wanted: steps.extend(wanted), touch_test)
    return outline, list(walk(steps))


def run(
    spec: Experiment, options: RunOptions | None = None, watch: Watcher = lambda step, event: None,
    announce: Announce = lambda line, num_steps: None,
) -> Path:  # fmt: skip
    """Run an experiment to its report; the run's directory.

    Raises:
        MotError: the first failure. What was published stays; the same call goes on from it.
    """
    options = options or RunOptions()
    started, clock = time.time(), time.monotonic()
    store = Store(options.store)
    with contextlib.closing(pool_of(store, options)) as pool, looking_up(store, spec.name) as looked_up:
        check_devices(spec, pool.devices)
        world, drawn = prepare(spec, resolve(spec), store.open(), publish=True)
        outline, steps = outline_of(spec, world)
        with explain_disk_errors(f"store {store.root}"):
            run_dir = new_run_dir(store, spec.name, spec.identity)
            write_atomically(run_dir / "spec.yaml", spec_to_yaml(spec))
        invocation = Invocation(run_dir.name, store, pool, world, watch, started=started, shards=options.shards)
        with prepared(invocation, steps, drawn, options.halt, announce, kept_of(spec, outline, steps)):
            looked_up()
            _run(spec, outline, steps, invocation, run_dir, clock, options.tracked)
    return run_dir


def _run(
    spec: Experiment, outline: Outline, steps: list[Step], invocation: Invocation, run_dir: Path, clock: float,
    tracked: bool,
) -> None:  # fmt: skip
    """Run the flow under an invocation, and what concludes it."""
    assert invocation.world is not None
    write_index(run_dir, index_of(spec, invocation.world, outline, steps, invocation))

    def conclude() -> None:
        assert invocation.world is not None
        invocation.pool.close()
        write_index(run_dir, index_of(spec, invocation.world, outline, steps, invocation))
        finish(spec, outline, invocation, run_dir, clock, tracked)

    invocation.conclude = conclude
    from flows.orchestrate import in_flow_run, run_experiment

    in_flow_run(run_experiment, invocation, spec.model_dump(mode="json"))


@contextlib.contextmanager
def looking_up(store: Store, name: str) -> Iterator[Callable[[], None]]:
    """Keep removals out of an existing store while a run that is not registered yet looks its models up there; call what this
    gives once it is."""
    with contextlib.ExitStack() as held:
        if (store.root / "locks").is_dir():
            held.enter_context(store.in_use(f"{name}, being prepared"))
        yield held.close


@contextlib.contextmanager
def prepared(
    invocation: Invocation,
    steps: list[Step],
    drawn: list[Published],
    halt: Halt,
    announce: Announce,
    kept: Iterable[Place],
) -> Iterator[None]:
    """The invocation registered, of these steps, its workers loading already if a step is missing. `drawn` are those
    that preparing it has published a moment ago, `kept` the weights that have to be there in the end."""
    with registered(invocation, halt):
        missing = invocation.look_up(steps, drawn, kept)
        todo = missing + len(drawn)  # what was drawn to know the graph was this run's work, too
        reused = len(steps) - todo
        announce(
            f"{invocation.run_id}: {len(steps)} steps, {todo} to run, {reused} reused; store {invocation.store.root}",
            len(steps),
        )
        if missing:
            invocation.pool.start()
        yield


@contextlib.contextmanager
def registered(invocation: Invocation, halt: Halt) -> Iterator[Invocation]:
    """An invocation that its flow's tasks can find and that heeds a halt, with Prefect quiet; nothing is removed from its
    store meanwhile; at the end its workers are stopped."""
    with invocation.store.in_use(invocation.run_id, is_run=True):
        register(invocation)
        quiet_prefect()
        halt.heed(invocation.halt)
        try:
            yield invocation
        except BaseException as error:
            _let_end(invocation, error)
            raise
        finally:
            invocation.pool.close()
            forget(invocation.run_id)


def _let_end(invocation: Invocation, error: BaseException) -> None:
    """Of a flow run that was paused, let what is being computed end and be published: Prefect itself raises `Pause`, wherever
    something waits for a task run, before all of them have ended."""
    from prefect.exceptions import Pause

    if isinstance(error, Pause) and isinstance(invocation.pool, WorkerPool):
        invocation.halt("paused")
        invocation.pool.drain()


def finish(
    spec: Experiment, outline: Outline, invocation: Invocation, run_dir: Path, clock: float, tracked: bool = True
) -> None:
    """Compare, summarise, report, track: everything that follows from what is published."""
    from mot_core.report.html import write_report
    from mot_core.summary import summarize_run
    from mot_core.tables import collect
    from tasks.tracking import track_run

    results = collect(invocation.store, run_dir, {})
    summary: dict[str, Any] = {
        "run_id": run_dir.name,
        "spec_identity": spec.identity,
        **summarize_run(results, final_students(outline, invocation), spec.evaluation.ci_resamples),
        "step_counts": invocation.step_counts(),
        "compute_seconds": union_seconds(invocation.pool.compute_intervals),
    }

    def write_summary() -> None:
        summary["wall_seconds"] = time.monotonic() - clock
        write_atomically(run_dir / SUMMARY, json.dumps(summary, indent=1) + "\n")

    write_summary()
    write_report(replace(results, summary=summary), run_dir)
    if tracked:
        track_run(invocation.store, run_dir)
    write_summary()  # again, so that the wall time includes report and tracking


def check_devices(spec: Experiment, devices: Sequence[str]) -> None:
    """Raise `SpecError` if a branch or an engine takes more devices than there are; a CPU takes any number."""
    asked = [*spec.teachers, *([spec.corpus.judge] if spec.corpus.judge is not None else [])]
    engines = [(f"teacher {teacher.name!r}: its engine", teacher.engine) for teacher in asked]
    engines.append(("evaluation.engine", spec.evaluation.engine))
    needs = [(what, engine.num_devices) for what, engine in engines if engine is not None]
    for what, count in [("training.devices", spec.training.devices), *needs]:
        if devices and count > len(devices):
            raise SpecError(
                f"{what} takes {count} devices, but there are {len(devices)} ({', '.join(devices)}); {REMEDY}"
            )


def quiet_prefect() -> None:
    """Prefect's settings for a command on a terminal, unless the user set them: no telemetry, no promotion, no
    line a task run (the live view shows them; the logs keep them)."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        # Twenty seconds, the default, are not enough for the temporary server on a machine that is busy.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(name, value)
