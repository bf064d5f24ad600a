"""A run's index: which published steps its results are read from, and where its final students lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.experiment import Evaluated, Outline
from mot_core.files import sha256_of
from mot_core.identity import fingerprint
from mot_core.provenance import git_commit, host_facts, package_versions
from mot_core.retention import Place, kept_places
from mot_core.spec import Experiment
from mot_core.steps import ModelRef, Step
from mot_core.world import World
from tasks.invocation import Invocation


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
                **_harness(student),
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
            "judgements": {name: step.identity for name, step in outline.judgements.items()},
            "corpora": outline.corpora.identity,
        },
        "students": students,
        "steps": [_step_row(step, invocation) for step in steps],
        "provenance": provenance_of(invocation),
    }  # fmt: skip


def kept_of(spec: Experiment, outline: Outline, steps: list[Step]) -> set[Place]:
    """The weights that an experiment keeps, as its spec's `keep` says."""
    merges = [merge.identity for student in outline.students for _, merge in student.path.merges]
    finals = [(one.student.source.identity, one.student.subdirectory) for one in outline.students if one.is_final]
    return kept_places(spec.keep, {step.identity for step in steps}, merges, finals)


def provenance_of(invocation: Invocation) -> dict[str, Any]:
    """What one invocation ran with: commit, versions, machine, workers, and when."""
    return {
        "commit": git_commit(), "versions": package_versions(), "host": host_facts(),
        "workers": invocation.pool.num_workers, "threads_per_worker": invocation.pool.settings.threads,
        "started": invocation.started, "flow_run_id": invocation.flow_run_id,
    }  # fmt: skip


def _harness(student: Evaluated) -> dict[str, Any]:
    """What lm-evaluation-harness measured; without it, no entry."""
    rows = [
        {"name": entry.name, "role": entry.role, "metric": entry.metric, "split": "test", "identity": step.identity}
        for entry, step in student.harness
    ]
    return {"harness": rows} if rows else {}


def _step_row(step: Step, invocation: Invocation) -> dict[str, Any]:
    record = invocation.records.get(step.identity) or invocation.found.get(step.identity)
    state = "missing" if record is None else "reused" if record.reused else "run"
    facts = {
        name: step.facts.get(name) for name in ("stage", "method", "seed", "round", "teacher", "benchmark", "split")
    }
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
            directory = invocation.store.object_dir(source.identity) / (subdirectory or "")
            path, sha256 = str(directory), _weights_hash(directory)
        rows.append(
            {
                "budget": student.budget,
                "method": student.path.label,
                "seed": student.seed,
                "path": path,
                "sha256": sha256,
            }
        )
    return rows


def _weights_hash(directory: Path) -> str | None:
    weights = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    if len(weights) == 1:
        return sha256_of(weights[0])
    return fingerprint([[path.name, sha256_of(path)] for path in weights]) if weights else None
