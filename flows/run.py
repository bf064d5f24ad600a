"""One invocation from spec to report: what `mot run` does, as a Python call.

The order matters: everything that can be refused is refused first; workers start only if a step is missing, and
before Prefect is imported, so that both load at the same time; the summary is written before anything that may
fail without harm (tracking).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.experiment import Outline, experiment
from mot_core.artifacts import Store, write_atomically
from mot_core.provenance import git_commit, host_facts, package_versions
from mot_core.runs import SUMMARY, new_run_dir, write_index
from mot_core.spec import Experiment
from mot_core.spec_files import spec_to_yaml
from mot_core.steps import ModelRef, Step, walk
from mot_core.workers.pool import WorkerPool, union_seconds
from mot_core.world import World, resolve
from tasks.invocation import Invocation, Watcher, forget, register


@dataclass(frozen=True)
class RunOptions:
    """How to run, never what: none of these enters an identity."""

    store: Path = Path("store")
    workers: int | None = None
    checkpoint_seconds: float = 60.0


def outline_of(spec: Experiment, world: World, touch_test: bool = True) -> tuple[Outline, list[Step]]:
    """The experiment's nodes and all of its steps, parents first, with nothing run."""
    steps: list[Step] = []
    outline = experiment(spec, world, lambda *wanted: steps.extend(wanted), touch_test)
    return outline, list(walk(steps))


def run(
    spec: Experiment, options: RunOptions | None = None, watch: Watcher = lambda step, event: None,
    announce: Callable[[str], None] = lambda line: None,
) -> Path:  # fmt: skip
    """Run an experiment to its report; the run's directory.

    Raises:
        MotError: the first failure. What was published stays; the same call goes on from it.
    """
    options = options or RunOptions()
    clock = time.monotonic()
    world = resolve(spec)
    store = Store(options.store).open()
    outline, steps = outline_of(spec, world)
    pool = WorkerPool(store, options.workers, options.checkpoint_seconds)
    run_dir = new_run_dir(store, spec.name, spec.identity)
    invocation = Invocation(run_dir.name, store, pool, world, watch)
    missing = invocation.look_up(steps)
    announce(f"{run_dir.name}: {len(steps)} steps, {missing} to run, {len(steps) - missing} reused")
    if missing:
        pool.start()
    (run_dir / "spec.yaml").write_text(spec_to_yaml(spec))
    write_index(run_dir, index_of(spec, world, outline, steps, invocation))
    register(invocation)
    quiet_prefect()
    try:
        from flows.orchestrate import run_experiment

        run_experiment(spec.model_dump(mode="json"), invocation.run_id)
        pool.close()
        write_index(run_dir, index_of(spec, world, outline, steps, invocation))
        finish(spec, outline, invocation, run_dir, clock)
    finally:
        pool.close()
        forget(invocation.run_id)
    return run_dir


def finish(spec: Experiment, outline: Outline, invocation: Invocation, run_dir: Path, clock: float) -> None:
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
        write_atomically(run_dir / SUMMARY, json.dumps(summary, indent=1, sort_keys=True) + "\n")

    write_summary()
    results = collect(invocation.store, run_dir, summary)
    write_report(results, run_dir)
    track_run(invocation.store, run_dir)
    write_summary()  # again, so that the wall time includes report and tracking


def index_of(
    spec: Experiment, world: World, outline: Outline, steps: list[Step], invocation: Invocation
) -> dict[str, Any]:
    """What `tables` needs to read this run's results from the store."""
    roles = {benchmark.name: benchmark.role for benchmark in spec.evaluation.benchmarks}
    students = []
    for student in outline.students:
        path = student.path
        students.append(
            {
                "budget": student.budget, "method": path.label, "seed": student.seed, "round": student.round_index,
                "is_final": student.is_final, "teacher": path.teacher,
                "path_steps": path.path_steps[student.round_index],
                "student": _place(student.student.source, student.student.subdirectory),
                "evaluations": [
                    {"benchmark": name, "split": split, "role": roles[name], "identity": step.identity,
                     "problems": step.parent("problems").identity}
                    for name, split, step in student.evaluations
                ],
                "branches": [
                    {"identity": b.identity, "name": b.facts["teacher"] or "union", "round": b.facts.get("round", 0)}
                    for b in path.branches
                ],
                "merges": [{"identity": merge.identity, "round": r} for r, merge in path.merges],
            }
        )  # fmt: skip
    return {
        "run_id": invocation.run_id,
        "spec": spec.model_dump(mode="json"),
        "spec_identity": spec.identity,
        "world": world.to_json(),
        "nodes": {
            "problems": outline.problems.identity,
            "verdicts": {name: step.identity for name, step in outline.verdicts.items()},
            "corpora": outline.corpora.identity,
        },
        "students": students,
        "steps": [_step_row(step, invocation) for step in steps],
        "provenance": {
            "commit": git_commit(), "versions": package_versions(), "host": host_facts(),
            "workers": invocation.pool.num_workers, "threads_per_worker": invocation.pool.settings.threads,
            "started": invocation.started,
        },
    }  # fmt: skip


def _step_row(step: Step, invocation: Invocation) -> dict[str, Any]:
    record = invocation.records.get(step.identity) or invocation.found.get(step.identity)
    state = "missing" if record is None else "reused" if record.reused else "run"
    facts = {name: step.facts.get(name) for name in ("stage", "method", "seed", "round", "teacher", "benchmark", "split")}
    return {
        "identity": step.identity, "kind": step.kind, "label": step.label, "state": state, **facts,
        "seconds": record.seconds if record else None,
        "parents": step.parent_identities(),
    }  # fmt: skip


def _place(source: Step | ModelRef, subdirectory: str | None) -> dict[str, Any]:
    return {
        "identity": source.identity,
        "subdirectory": subdirectory,
        "locator": source.locator if isinstance(source, ModelRef) else None,
    }


def final_students(outline: Outline, invocation: Invocation) -> list[dict[str, Any]]:
    """Where each final student's weights are, with their hash: of the file, or of a sharded model's file hashes."""
    rows = []
    for student in outline.students:
        if not student.is_final:
            continue
        source, subdirectory = student.student.source, student.student.subdirectory
        if isinstance(source, ModelRef):
            path, sha256 = source.locator, _weights_hash(Path(source.locator))
        else:
            manifest = invocation.store.manifest(source.identity)
            assert manifest is not None, f"{source.label} was published a moment ago"
            prefix = f"{subdirectory}/" if subdirectory else ""
            path = str(invocation.store.object_dir(source.identity) / (subdirectory or ""))
            sha256 = manifest.files[f"{prefix}model.safetensors"]["sha256"]
        rows.append(
            {"budget": student.budget, "method": student.path.label, "seed": student.seed, "path": path, "sha256": sha256}
        )
    return rows


def _weights_hash(directory: Path) -> str | None:
    from mot_core.artifacts import sha256_of
    from mot_core.identity import fingerprint

    weights = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    if len(weights) == 1:
        return sha256_of(weights[0])
    return fingerprint([[path.name, sha256_of(path)] for path in weights]) if weights else None


def quiet_prefect() -> None:
    """Prefect's settings for a command on a terminal, unless the user set them: no telemetry, no promotion, no
    line a task run (the live view shows them; the logs keep them)."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(name, value)
