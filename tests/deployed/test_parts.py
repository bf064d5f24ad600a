"""The deployments beside whole experiments, on real servers: rationales, one model's scores, a merge."""

from __future__ import annotations

import json
import re
import shutil
from urllib.request import Request, urlopen

import pytest

from tests.processes import ROOT
from tests.serving import Served

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WEIGHTS = ROOT / "mot_core" / "lab" / "weights"


def test_rationales_scores_and_a_merge_by_themselves(served: Served) -> None:
    folder = served.home.parent / "to-merge"  # under the workers' directory, which a form may name
    for name in ("a", "b"):
        shutil.copytree(WEIGHTS / "student-tiny", folder / name)
    runs = {
        "generate": served.submit("generate/generate", {"preset": "smoke", "teachers": ["running-total"]}),
        "evaluate": served.submit("evaluate/evaluate", {"preset": "smoke", "model": "lab:student-tiny", "benchmarks": ["sums"]}),
        "merge": served.submit("merge/merge", {"name": "ab", "models": [str(folder / "a"), str(folder / "b")]}),
    }  # fmt: skip
    for run in runs.values():
        served.ends(run, "COMPLETED")
    assert re.search(r"\| running\\-total \|.*\| 48 \|", served.artifacts(runs["generate"])["rationales-smoke"])
    assert "sums" in next(iter(served.artifacts(runs["evaluate"]).values()))
    merged = served.store / "merged" / "ab" / "model.safetensors"
    assert merged.stat().st_size == (folder / "a" / "model.safetensors").stat().st_size

    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=evaluations"
    with urlopen(f"{served.mlflow}{path}", timeout=30) as answer:
        experiment = json.load(answer)["experiment"]["experiment_id"]
    search = Request(
        f"{served.mlflow}/api/2.0/mlflow/runs/search", json.dumps({"experiment_ids": [experiment]}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urlopen(search, timeout=30) as answer:
        [logged] = json.load(answer)["runs"]
    params = {one["key"]: one["value"] for one in logged["data"]["params"]}
    assert (params["model"], params["preset"]) == ("lab:student-tiny", "smoke")
    assert any(one["key"].startswith("test/sums/avg_at_") for one in logged["data"]["metrics"])
