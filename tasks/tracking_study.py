"""What the tracker is told about one study: a parent run with figure, table and paragraph, and below it a run a cell.

A cell's run has the study's coordinates as params and its final students' scores as metrics, so that MLflow's own
comparison pages draw a study's axis. Invariant: as in `tracking_plan`: numbers, identities and short text only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mot_core.analysis.page import STUDY
from mot_core.artifacts import Store
from mot_core.files import sha256_of
from mot_core.runs import read_index
from mot_core.tables import load_results
from tasks.tracking_records import PlannedRun, flatten, metric_name, notes_of, short_text

_FILES = ("study.html", "study.md", "table.csv", "figure.png", STUDY)


def plan_study(store: Store, run_dir: Path) -> list[PlannedRun]:
    """The runs to log for a study, the parent first."""
    record: dict[str, Any] = json.loads((run_dir / STUDY).read_text())
    return [_parent(run_dir, record), *(_cell(store, run_dir, record, cell) for cell in record["cells"])]


def _parent(run_dir: Path, record: dict[str, Any]) -> PlannedRun:
    params = {"study": record["study"], "size": record["size"], "base": record["base"]["name"]}
    params |= {f"options.{name}": value for name, value in flatten(record["options"])}
    started = float(record["provenance"]["started"])
    return PlannedRun(
        "study", None, f"{record['study']} {record['size']} {record['identity'][:8]}", _tags(record, "study", record["identity"]),
        notes_of(record["run_id"], record["provenance"]), params, (("num_cells", float(len(record["cells"])), 0),), (), None,
        tuple((run_dir / name, None) for name in _FILES), {"table.csv": sha256_of(run_dir / "table.csv")},
        started, started + float(record["wall_seconds"]),
    )  # fmt: skip


def _cell(store: Store, run_dir: Path, record: dict[str, Any], cell: dict[str, Any]) -> PlannedRun:
    directory = run_dir / "cells" / cell["name"]
    results = load_results(directory)
    # From its first computed step to the end of its last: cells share workers, so that none has all of the study's time.
    manifests = [store.manifest(s["identity"]) for s in read_index(directory)["steps"] if s["state"] == "run"]
    computed = [manifest for manifest in manifests if manifest is not None]
    started = float(record["provenance"]["started"])
    return PlannedRun(
        f"cell/{cell['name']}", "study", f"{record['study']}: {cell['name']}", _tags(record, "cell", cell["spec_identity"]),
        notes_of(record["run_id"], record["provenance"]), {name: str(value) for name, value in cell["coordinates"].items()}, tuple(_scores(results.scores)),
        (), None, (), {}, min((m.started for m in computed), default=started), max((m.ended for m in computed), default=started),
    )  # fmt: skip


def _scores(scores: Any) -> Iterator[tuple[str, float, int]]:
    """Means over seeds of the final students on test, by budget, method and benchmark."""
    final = scores[scores["is_final"] & (scores["split"] == "test")]
    for (budget, method, benchmark), rows in final.groupby(["budget", "method", "benchmark"], sort=True):
        yield metric_name(budget, method, "test", benchmark), float(rows["avg_at_k"].mean()), 0


def _tags(record: dict[str, Any], role: str, identity: str) -> dict[str, str]:
    return {
        "mot.role": role, "mot.spec": record["identity"], "mot.identity": identity, "mot.study": short_text(record["study"]),
        "mot.size": short_text(record["size"]),
    }  # fmt: skip
