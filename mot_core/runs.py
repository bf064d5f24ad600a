"""One invocation's directory, `STORE/runs/<run id>/`: what ran, and where its results lie.

`index.json` lists the experiment's nodes, students and evaluations by identity, so that every table can be made
again from the store without rebuilding the DAG. Invariant: nothing here is truth about what is done.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.files import entry_name, refuse_links, write_atomically
from mot_core.spec import nearest
from mot_core.steps import Step

INDEX, SUMMARY, STEPS, EVALUATION = "index.json", "summary.json", "steps.json", "evaluation.json"
CELLS = "cells"


def new_run_dir(store: Store, name: str, spec_identity: str) -> Path:
    """A fresh directory named after experiment, spec and count: no clock in a run's name. The count is above that of every
    run of the spec that is there, since the highest one is the newest.

    Raises:
        StoreError: a name that is no part of a path.
    """
    entry_name(name, "run")
    runs, series = store.root / "runs", f"{name}-{spec_identity[:8]}-"
    there = [path.name.removeprefix(series) for path in runs.glob(f"{series}*")]
    highest = max((int(count) for count in there if count.isdecimal()), default=0)
    for count in itertools.count(highest + 1):
        path = runs / f"{series}{count:03d}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def store_of(run_dir: Path) -> Path:
    """The store that a run's directory, or that of a cell of a study, lies in.

    Raises:
        StoreError: it lies in none.
    """
    for parent in run_dir.resolve().parents:
        if (parent / "store.json").is_file():
            return parent
    raise StoreError(f"{run_dir} lies in no store (no store.json above it); give a run's directory in its store")


def find_run_dir(store: Store, run: str) -> Path:
    """A run's directory by its id, or by the start of its id (the newest that fits).

    Raises:
        StoreError: no such run, with the nearest right one; a run with a symbolic link in it.
    """
    runs = store.root / "runs"
    names = sorted(path.name for path in runs.iterdir()) if runs.is_dir() else []
    fitting = [name for name in names if name == run] or [name for name in names if name.startswith(run)]
    if not fitting:
        known = ", ".join(names[-5:]) or "none yet"
        raise StoreError(f"no run {run!r} in {store.root}; {nearest(run, names)}the last ones: {known}")
    found = runs / max(fitting, key=lambda name: (runs / name).lstat().st_mtime)
    refuse_links(found, f"run {found.name}")
    return found


def teachers_of(spec: Mapping[str, Any], student: Mapping[str, Any]) -> list[str]:
    """Whose corpora one of an index's students was made from, by the run's spec: its one teacher, or those of its method's
    entry; of a method that names none, all."""
    if student["teacher"] is not None:
        return [student["teacher"]]
    entry: Mapping[str, Any] = next((one for one in spec["methods"] if one["name"] == student["method"]), {})
    return list(entry.get("teachers") or [teacher["name"] for teacher in spec["teachers"]])


def write_index(run_dir: Path, index: dict[str, Any]) -> None:
    write_atomically(run_dir / INDEX, json.dumps(index, indent=1, sort_keys=True) + "\n")


def write_steps(run_dir: Path, steps: Iterable[Step], models: Iterable[str], keep: str, *, finished: bool) -> None:
    """Which steps a sweep, a part or a study has, and where the models lie that it takes from outside, so that none of them
    counts as nobody's, before any index could say so."""
    rows = [{"identity": step.identity, "kind": step.kind, "label": step.label} for step in steps]
    run_dir.mkdir(exist_ok=True)
    document = {"keep": keep, "finished": finished, "models": sorted(models), "steps": rows}
    write_atomically(run_dir / STEPS, json.dumps(document, indent=1) + "\n")


def read_index(run_dir: Path) -> dict[str, Any]:
    """A run's index.

    Raises:
        StoreError: the run has none: it was ended before it planned anything.
    """
    try:
        index: dict[str, Any] = json.loads((run_dir / INDEX).read_text())
        return index
    except FileNotFoundError:
        raise StoreError(
            f"run {run_dir.name} has no {INDEX}: it ended before anything was planned; run it again"
        ) from None
