"""Parts of an experiment by themselves: its teachers' rationales with their verdicts, or one model on its benchmarks.

The same steps as in the whole, in the same store: what a part has paid for is not paid for again there.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.index import provenance_of
from flows.run import Announce, RunOptions, check_devices, looking_up, outline_of, pool_of, prepared
from mot_core.artifacts import Published, Store
from mot_core.files import write_atomically
from mot_core.identity import fingerprint
from mot_core.prepare import prepare
from mot_core.runs import EVALUATION, write_steps
from mot_core.spec import Experiment
from mot_core.steps import Step, walk
from mot_core.world import resolve
from tasks.invocation import Invocation, Watcher
from tasks.tracking import track_run

Row = dict[str, Any]


def verify_rationales(
    spec: Experiment, options: RunOptions, watch: Watcher = lambda step, event: None,
    announce: Announce = lambda line, num_steps: None,
) -> list[Row]:  # fmt: skip
    """Have every teacher answer and be verified; a row a teacher: what was asked, and how the answers were judged.

    Raises:
        MotError: as `flows.run.run`.
    """

    def wanted(outline: Any) -> dict[str, Step]:
        verdicts: dict[str, Step] = outline.verdicts
        return verdicts

    done = _run_part(spec, options, watch, announce, wanted)
    return [{"teacher": teacher, **_counts(record)} for teacher, record in done.records.items()]


def evaluate_model(
    spec: Experiment, options: RunOptions, watch: Watcher = lambda step, event: None,
    announce: Announce = lambda line, num_steps: None,
) -> list[Row]:  # fmt: skip
    """Have the spec's untrained student answer the benchmarks; a row a benchmark and split, and a run in the tracker's
    experiment `evaluations`.

    Raises:
        MotError: as `flows.run.run`.
    """

    def wanted(outline: Any) -> dict[tuple[str, str], Step]:
        [asked] = [student for student in outline.students if student.method == "base"]
        steps = {(name, split): step for name, split, step in asked.evaluations}
        return steps | {(entry.name, "test"): step for entry, step in asked.harness}

    done = _run_part(spec, options, watch, announce, wanted)
    rows = [{"benchmark": name, "split": split, **_counts(record)} for (name, split), record in done.records.items()]
    identities = {f"{name} {split}": record.identity for (name, split), record in done.records.items()}
    document = {
        "name": spec.name, "model": spec.student.model_dump(mode="json", exclude_none=True), "identities": identities,
        "scores": rows, "provenance": provenance_of(done.invocation),
    }  # fmt: skip
    write_atomically(done.run_dir / EVALUATION, json.dumps(document, indent=1) + "\n")
    track_run(done.invocation.store, done.run_dir)
    return rows


def _counts(record: Published) -> Row:
    """In one order, whether the step was computed a moment ago or read from its manifest."""
    return dict(sorted(record.counts.items()))


@dataclass(frozen=True)
class _Part:
    """What was run: its directory, and the records of the chosen steps."""

    run_dir: Path
    invocation: Invocation
    records: dict[Any, Published]


def _run_part(spec: Experiment, options: RunOptions, watch: Watcher, announce: Announce, wanted: Any) -> _Part:
    """Publish the steps that `wanted` chooses from the experiment's outline, and what they need; their records by its keys."""
    store = Store(options.store)
    with contextlib.closing(pool_of(store, options)) as pool, looking_up(store, spec.name) as looked_up:
        check_devices(spec, pool.devices)
        world, drawn = prepare(spec, resolve(spec), store.open(), publish=True)
        outline, _ = outline_of(spec, world)
        chosen: dict[Any, Step] = wanted(outline)
        steps = list(walk(list(chosen.values())))
        run_dir = store.root / "runs" / f"part-{spec.name}-{fingerprint([step.identity for step in steps])[:8]}"
        invocation = Invocation(run_dir.name, store, pool, world, watch, shards=options.shards)
        with prepared(invocation, steps, drawn, options.halt, announce, ()):
            looked_up()
            write_steps(run_dir, steps, world.locators, spec.keep, finished=False)
            from flows.orchestrate import in_flow_run, run_part

            in_flow_run(run_part, invocation, [step.identity for step in steps])
            write_steps(run_dir, steps, world.locators, spec.keep, finished=True)
            return _Part(run_dir, invocation, {key: invocation.records[step.identity] for key, step in chosen.items()})
