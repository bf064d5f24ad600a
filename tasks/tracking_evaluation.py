"""What the tracker is told about one model that answered benchmarks by itself: a run in the experiment `evaluations`.

Its metrics have the names that final students' have in their experiments, `test/sums/avg_at_4`, so that MLflow compares both.
Invariant: as in `tracking_plan`: numbers, identities and short text only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.identity import fingerprint
from mot_core.runs import EVALUATION
from tasks.tracking_plan import SCORES, TEST_MEASURES
from tasks.tracking_records import Input, PlannedRun, metric_name, param_value, short_text

EVALUATIONS = "evaluations"


def plan_evaluation(store: Store, run_dir: Path) -> list[PlannedRun]:
    """The one run to log for an evaluation.

    Raises:
        StoreError: a step of it is damaged.
    """
    document: dict[str, Any] = json.loads((run_dir / EVALUATION).read_text())
    model, provenance = document["model"], document["provenance"]
    identities = sorted(document["identities"].values())
    manifests = {place: store.manifest(identity) for place, identity in document["identities"].items()}
    found = [manifest for manifest in manifests.values() if manifest is not None]
    inputs = {
        Input("evaluation", f"benchmark/{place.replace(' ', '/')}", parent)
        for place, manifest in manifests.items() if manifest is not None
        for role, parent in manifest.parents if role == "problems"
    }  # fmt: skip
    identity = fingerprint(identities)
    notes = (
        ("mot.run_id", run_dir.name), ("mot.git_commit", provenance.get("commit")),
        ("mot.flow_run_id", provenance.get("flow_run_id")),
    )  # fmt: skip
    started = float(provenance.get("started") or 0.0)
    return [
        PlannedRun(
            "evaluation", None, short_text(f"{model['name']} {identity[:8]}"),
            {"mot.role": "evaluation", "mot.spec": identity, "mot.identity": identity, "mot.model": short_text(model["model"])},
            {name: short_text(value) for name, value in notes if value},
            {
                "preset": param_value(document["name"]), **{name: param_value(value) for name, value in model.items()},
                "benchmarks": param_value(sorted({row["benchmark"] for row in document["scores"]})),
            },
            tuple(point for row in document["scores"] for point in _points(row)), tuple(sorted(inputs)), None,
            ((run_dir / EVALUATION, None),), {},
            min((one.started for one in found), default=started), max((one.ended for one in found), default=started),
        )
    ]  # fmt: skip


def _points(row: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """A score row's metrics; of lm-evaluation-harness, every figure under its own name."""
    if "k" in row:
        k = row["k"]
        names = {score: score.replace("_k", f"_{k}") for score in (SCORES if k > 1 else SCORES[:1])}
        names |= {measure: measure for measure in (TEST_MEASURES if row["split"] == "test" else ())}
    else:
        names = {name: name for name in row if name not in ("benchmark", "split")}
    for column, name in names.items():
        value = row[column]
        if isinstance(value, int | float) and math.isfinite(value):
            yield metric_name(row["split"], row["benchmark"], name), float(value), 0
