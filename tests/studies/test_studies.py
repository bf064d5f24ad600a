"""Studies end to end at their smoke size: real models, workers, Prefect and MLflow, one store for all of them.

Six of them, unless MOT_TEST_STUDIES is `all` (make test-studies).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.studies import STUDIES
from flows.studies.findings import write_findings
from mot_core.artifacts import Store
from mot_core.errors import SpecError, StoreError
from mot_core.files import read_jsonl
from mot_core.removal import remove_unwanted
from mot_core.tables import load_results
from tests.processes import ROOT, count_published, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400), pytest.mark.usefixtures("prefect_api")]
AGAIN = "methods"
OWN = "my_study:STUDY"  # the documents' example
KILLED_AFTER = 10
SOME = ("best-teacher", "methods", "rounds", "consensus", "merges", "on-policy")
NAMES = list(STUDIES) if os.environ.get("MOT_TEST_STUDIES") == "all" else SOME


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("studies") / "store")


@pytest.fixture(scope="module")
def said(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the driver said, by study; `methods` runs a second time, last. The first study is killed once, in its middle."""
    example = re.search(r"```python\n(# my_study\.py\n.*?)```", (ROOT / "docs/studies.md").read_text(), re.DOTALL)
    assert example is not None
    own = tmp_path_factory.mktemp("own")
    (own / "my_study.py").write_text(example[1])
    command = [sys.executable, "-W", "ignore", "-m", "tests.drive_studies", str(store.root), *NAMES, OWN, AGAIN]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{own}"}
    log = own / "killed.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment) as killed,
    ):
        wait_until(
            lambda: count_published(store.root) >= KILLED_AFTER or killed.poll() is not None, 800.0, "published steps"
        )
        assert killed.poll() is None, log.read_text()[-4000:]
        killed.kill()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-6000:]
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            one = json.loads(line)
            lines.setdefault(one["study"], []).append(one)
    return lines


def record_of(said: dict[str, list[dict[str, Any]]], name: str, which: int = 0) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((Path(said[name][which]["run_dir"]) / "study.json").read_text())
    return record


@pytest.mark.parametrize("name", NAMES)
def test_a_study_ends_in_a_page(said: dict[str, list[dict[str, Any]]], name: str) -> None:
    run_dir, record = Path(said[name][0]["run_dir"]), record_of(said, name)
    assert said[name][0]["torch"] is False, "the flow process imported torch"
    assert record["rows"] and all(len(row) == len(record["columns"]) for row in record["rows"])
    assert len(record["text"]) > 80 and "n = " in record["text"].lower() and "training seed" in record["text"]
    table = pd.read_csv(run_dir / "table.csv")
    assert len(table) == len(record["rows"]) and list(table.columns) == record["columns"]
    picture = (run_dir / "figure.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and 5_000 < len(picture) < 200_000
    page = (run_dir / "study.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page
    cells = {cell["name"] for cell in record["cells"]}
    assert {path.name for path in (run_dir / "cells").iterdir()} == cells
    for cell in cells:
        assert len(load_results(run_dir / "cells" / cell).scores)
    assert json.loads((run_dir / "tracking.json").read_text())["state"] == "logged"


def test_a_killed_study_goes_on(said: dict[str, list[dict[str, Any]]]) -> None:
    first = NAMES[0]
    counts = record_of(said, first)["step_counts"]
    assert counts["reused"] >= KILLED_AFTER and counts["run"] > 0
    # The killed run has no page.
    (only,) = Path(said[first][0]["run_dir"]).parent.glob(f"study-{first}-smoke-*/study.json")
    assert json.loads(only.read_text())["step_counts"] == counts


def test_a_second_run_computes_nothing(said: dict[str, list[dict[str, Any]]]) -> None:
    first, second = record_of(said, AGAIN), record_of(said, AGAIN, -1)
    assert second["step_counts"]["run"] == 0
    assert (second["text"], second["rows"]) == (first["text"], first["rows"])
    directories = [Path(said[AGAIN][which]["run_dir"]) for which in (0, -1)]
    assert directories[0] != directories[1]
    for name in ("figure.png", "figure.svg", "table.csv"):
        assert (directories[0] / name).read_bytes() == (directories[1] / name).read_bytes()


def test_every_step_of_a_study_is_named_by_it(said: dict[str, list[dict[str, Any]]], store: Store) -> None:
    found = remove_unwanted(store, dry_run=True)
    assert [one for one in found.removals if one.what in ("step", "weights")] == []
    assert {"landscape", "confidence"} <= {manifest.kind for manifest in store.manifests()}


def test_studies_share_steps(said: dict[str, list[dict[str, Any]]]) -> None:
    shared = {name: record_of(said, name)["step_counts"]["reused"] for name in NAMES}
    assert shared["merges"] > 0 and shared["consensus"] > 0 and shared["on-policy"] > 0


def test_a_tables_figure_is_a_count_of_graded_answers(said: dict[str, list[dict[str, Any]]], store: Store) -> None:
    record = record_of(said, "methods")
    index = json.loads((Path(said["methods"][0]["run_dir"]) / "cells/methods/index.json").read_text())
    right, total = 0, 0
    for student in index["students"]:
        if student["method"] == "mot" and student["is_final"] and student["budget"] == "matched_path":
            for evaluation in student["evaluations"]:
                if evaluation["split"] == "test" and evaluation["role"] == "home":
                    graded = read_jsonl(store.object_dir(evaluation["identity"]) / "graded.jsonl")
                    right, total = right + sum(row["verdict"] == "correct" for row in graded), total + len(graded)
    row = next(row for row in record["rows"] if row[0] == "matched path" and row[1].startswith("MoT"))
    assert row[record["columns"].index("home")].startswith(f"{100 * right / total:.1f} %")


def test_mlflow_has_a_run_a_cell(said: dict[str, list[dict[str, Any]]], store: Store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("study-rounds")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    cells = [run for run in runs if run.data.tags["mot.role"] == "cell"]
    (parent,) = [run for run in runs if run.data.tags["mot.role"] == "study"]
    assert {run.data.params["rounds"] for run in cells} == {"1", "2", "3"}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in cells)
    assert all("matched_path/mot/test/sums" in run.data.metrics for run in cells)
    took = {run.info.run_id: run.info.end_time - run.info.start_time for run in runs}
    assert took[parent.info.run_id] == pytest.approx(1000 * record_of(said, "rounds")["wall_seconds"], abs=2)
    assert all(0 <= took[run.info.run_id] <= took[parent.info.run_id] for run in cells)
    assert "figure.png" in {one.path for one in client.list_artifacts(parent.info.run_id)}


def test_the_documents_own_study_runs(said: dict[str, list[dict[str, Any]]]) -> None:
    record = record_of(said, OWN)
    assert [row[0] for row in record["rows"]] == ["batch-8 (reference)", "batch-16"]
    assert record["size"] == "study-smoke" and "study-batches-study-smoke-" in record["run_id"]


def test_findings_are_put_where_a_document_asks(
    said: dict[str, list[dict[str, Any]]], store: Store, tmp_path: Path
) -> None:
    document = tmp_path / "found.md"
    document.write_text("# Found\n\n<!-- study rounds smoke -->\nold\n<!-- end -->\n\nOur reading stays.\n")
    assert write_findings(store, document) == ["rounds smoke"]
    text = document.read_text()
    assert "old" not in text and "Our reading stays." in text and "images/studies/rounds-smoke.png" in text
    assert (tmp_path / "images/studies/rounds-smoke.png").stat().st_size > 5_000
    once = text
    write_findings(store, document)
    assert document.read_text() == once
    document.write_text("<!-- study rounds paper -->\n<!-- end -->\n")
    with pytest.raises(StoreError, match="study rounds at size paper has not run in"):
        write_findings(store, document)
    document.write_text("nothing\n")
    with pytest.raises(SpecError, match="has no place for a study"):
        write_findings(store, document)
