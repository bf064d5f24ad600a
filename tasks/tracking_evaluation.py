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
from tasks.tracking_plan import score_names
from tasks.tracking_records import Input, PlannedRun, metric_name, notes_of, param_value, short_text

EVALUATIONS = "evaluations"


def plan_evaluation(store: Store, run_dir: Path) -> list[PlannedRun]:
    """The one run to log for an evaluation."""
    document: dict[str, Any] = json.loads((run_dir / EVALUATION).read_text())
    model, identity = document["model"], fingerprint(sorted(document["identities"].values()))
    looked_up = {place: store.manifest(one) for place, one in document["identities"].items()}
    manifests = {place: manifest for place, manifest in looked_up.items() if manifest is not None}
    inputs = {
        Input("evaluation", f"benchmark/{place.replace(' ', '/')}", parent)
        for place, manifest in manifests.items() for role, parent in manifest.parents if role == "problems"
    }  # fmt: skip
    return [
        PlannedRun(
            "evaluation", None, short_text(f"{model['name']} {identity[:8]}"),
            {"mot.role": "evaluation", "mot.spec": identity, "mot.identity": identity, "mot.model": short_text(model["model"])},
            notes_of(run_dir.name, document["provenance"]),
            {
                "preset": param_value(document["name"]), **{name: param_value(value) for name, value in model.items()},
                "benchmarks": param_value(sorted({row["benchmark"] for row in document["scores"]})),
            },
            tuple(point for row in document["scores"] for point in _points(row)), tuple(sorted(inputs)), None,
            ((run_dir / EVALUATION, None),), {},
            min((one.started for one in manifests.values()), default=0.0), max((one.ended for one in manifests.values()), default=0.0),
        )
    ]  # fmt: skip


def _points(row: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """A score row's metrics; of lm-evaluation-harness, every figure under its own name."""
    figures = {name: name for name in row if name not in ("benchmark", "split")}
    for column, name in (score_names(row["k"], row["split"]) if "k" in row else figures).items():
        value = row[column]
        if isinstance(value, int | float) and math.isfinite(value):
            yield metric_name(row["split"], row["benchmark"], name), float(value), 0
