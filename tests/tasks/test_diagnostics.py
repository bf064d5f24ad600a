"""Diagnostics of a real run with a barrier, an early stop and adapters: from published steps to tables, MLflow, report."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from mot_core.files import read_jsonl
from mot_core.results import Results
from mot_core.runs import read_index
from mot_core.tables import load_results
from mot_core.usage import read_usage
from tasks.tracking_plan import plan_run
from tasks.tracking_records import PlannedRun
from tests.pico import pico_experiment
from tests.tasks.runs import computed_run

PLACE = "budget=matched_path/method=mot/seed=1"
METHODS = [{"name": name} for name in ("base", "std", "mot")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, pico_models: Path) -> Path:
    root = tmp_path_factory.mktemp("diagnosed") / "store"
    training = {
        "batch_size": 2, "learning_rate": 3e-2, "lora": {"rank": 4}, "max_example_tokens": 72, "too_long": "drop",
        "early_stop": {"held_out_share": 0.3, "every_steps": 1, "patience": 1},
    }  # fmt: skip
    spec = pico_experiment(
        pico_models, methods=METHODS, training=training, steps_per_round=8, merge={"barrier": {"num_examples": 2}},
        corpus={"num_rationales": 10},
    )  # fmt: skip
    return computed_run(root, spec, f"sqlite:///{root}/mlflow.db")


@pytest.fixture(scope="module")
def results(run_dir: Path) -> Results:
    return load_results(run_dir)


def document_of(run_dir: Path, round_index: int) -> dict[str, Any]:
    """The diagnostics of MoT's merge of a round, as its step published them."""
    (student,) = [s for s in read_index(run_dir)["students"] if s["method"] == "mot" and s["is_final"]]
    (identity,) = [merge["identity"] for merge in student["merges"] if merge["round"] == round_index]
    path = Store(run_dir.parent.parent).object_dir(identity) / "diagnostics.json"
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def plans_of(run_dir: Path) -> dict[str, PlannedRun]:
    return {plan.key: plan for plan in plan_run(Store(run_dir.parent.parent), run_dir)}


def metrics_of(plan: PlannedRun) -> dict[str, float]:
    return {name: value for name, value, _ in plan.metrics}


def test_tables_hold_what_merges_measured(run_dir: Path, results: Results) -> None:
    for round_index in (1, 2):
        said = document_of(run_dir, round_index)
        at = f"method == 'mot' and round == {round_index}"
        lines = results.merge_barrier.query(at)
        assert lines["loss"].tolist() == [loss for row in said["barrier"] for loss in row["losses"]]
        assert lines["share"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0] * 5
        assert lines.drop_duplicates(["from", "to"])["barrier"].tolist() == [row["barrier"] for row in said["barrier"]]
        ranks = results.merge_rank.query(at)
        assert ranks["effective_rank"].tolist() == [row["effective_rank"] for row in said["effective_rank"]]
        (pair,) = results.merge_cosine.query(at).to_dict("records")
        assert (pair["a"], pair["b"], pair["cosine"]) == ("ann", "bob", said["pairwise_cosine"][0]["cosine"])


def test_tables_hold_what_branches_counted(run_dir: Path, results: Results) -> None:
    store = Store(run_dir.parent.parent)
    rows = results.branches.query("method == 'mot'").to_dict("records")
    assert [(row["round"], row["branch"]) for row in rows] == [(1, "ann"), (1, "bob"), (2, "ann"), (2, "bob")]
    for row in rows:
        manifest = store.manifest(row["identity"])
        assert manifest is not None
        assert {name: row[name] for name in manifest.counts if name in row} == {
            name: value for name, value in manifest.counts.items() if name in row
        }
        assert row["num_planned_steps"] == 8 and row["num_carried_moments"] == 0
        assert row["num_trained_parameters"] < row["num_parameters"]
        of_branch = results.training[
            (results.training["method"] == "mot")
            & (results.training["branch"] == row["branch"])
            & (results.training["round"] == row["round"])
        ]
        assert len(of_branch) == row["num_steps"]
        assert of_branch["held_out_loss"].min() == row["held_out_loss"]
    assert any(row["num_steps"] < 8 for row in rows) and any(row["num_dropped_long"] > 0 for row in rows)


def test_mlflow_has_a_rounds_diagnostics(run_dir: Path) -> None:
    said = document_of(run_dir, 2)
    plan = plans_of(run_dir)[f"{PLACE}/round=2"]
    found = metrics_of(plan)
    assert {step for name, _, step in plan.metrics if name.startswith("merge/")} == {2}
    losses = {row["from"]: row["losses"][0] for row in said["barrier"]}
    losses["merged"] = said["barrier"][-1]["losses"][-1]
    assert {name.removeprefix("merge/loss/"): value for name, value in found.items() if "/loss/" in name} == losses
    for row in said["barrier"]:
        assert found[f"merge/barrier/{row['from']} to {row['to']}"] == row["barrier"]
    assert found["merge/max_barrier"] == max(row["barrier"] for row in said["barrier"])
    assert found["merge/cosine/ann bob"] == said["pairwise_cosine"][0]["cosine"]
    for branch in ("ann", "bob", "merged"):
        ranks = [row["effective_rank"] for row in said["effective_rank"] if row["branch"] == branch]
        assert found[f"merge/effective_rank/all/{branch}"] == pytest.approx(sum(ranks) / len(ranks))
        mlp = [row for row in said["drift"] if (row["branch"], row["kind"]) == (branch, "mlp")]
        norm = math.sqrt(sum(row["drift"] ** 2 for row in mlp))
        start = math.sqrt(sum((row["drift"] / row["relative_drift"]) ** 2 for row in mlp))
        assert found[f"merge/drift/mlp/{branch}"] == pytest.approx(norm)
        assert found[f"merge/relative_drift/mlp/{branch}"] == pytest.approx(norm / start)
        assert found[f"merge/relative_drift/outside layers/{branch}"] == 0.0, "adapters leave the embedding alone"
        whole = math.sqrt(sum(row["drift"] ** 2 for row in said["drift"] if row["branch"] == branch))
        assert found[f"merge/drift/all/{branch}"] == pytest.approx(whole)


def test_mlflow_has_a_branchs_counts_and_held_out_losses(run_dir: Path, results: Results) -> None:
    row = results.branches.query("method == 'mot' and round == 2 and branch == 'bob'").iloc[0]
    plan = plans_of(run_dir)[f"{PLACE}/round=2/branch=bob"]
    found = metrics_of(plan)
    for name in (
        "num_dropped_long",
        "num_held_out",
        "num_steps",
        "num_planned_steps",
        "best_step",
        "tokens_per_second",
    ):
        assert found[name] == row[name]
    assert found["num_trained_parameters"] < found["num_parameters"]
    assert "peak_memory_bytes" not in found, "a CPU has none"
    entries = read_jsonl(Store(run_dir.parent.parent).object_dir(row["identity"]) / "training.jsonl")
    looks = {entry["step"]: entry["held_out_loss"] for entry in entries if "held_out_loss" in entry}
    assert {step: value for name, value, step in plan.metrics if name == "held_out_loss"} == looks
    # Steps are numbered along the path.
    assert min(looks) == 9


def test_the_tracker_took_all_of_it(run_dir: Path) -> None:
    from mlflow import MlflowClient

    told = json.loads((run_dir / "tracking.json").read_text())
    assert told["problem"] is None
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir.parent.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("pico")
    logged = {run.data.tags["mot.key"]: run for run in client.search_runs([experiment.experiment_id])}
    for key, plan in plans_of(run_dir).items():
        assert set(logged[key].data.metrics) == {*metrics_of(plan), *(name for name, _, _, _ in plan.samples)}
    highest = max(row["barrier"] for row in document_of(run_dir, 1)["barrier"])
    assert logged[f"{PLACE}/round=1"].data.metrics["merge/max_barrier"] == highest


def test_a_branchs_page_has_its_use_of_the_machine(run_dir: Path, tmp_path: Path) -> None:
    """On MLflow's page of system metrics, with the times at which it was seen; speed is a curve that ends in the count."""
    from mlflow import MlflowClient

    key = f"{PLACE}/round=2/branch=bob"
    uri = f"sqlite:///{run_dir.parent.parent}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("pico").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`mot.key` = '{key}'")
    rows = read_usage(Store(run_dir.parent.parent).usage_path(run.data.tags["mot.identity"]))
    assert rows
    for name, column, unit in (
        ("system/cpu_utilization_percentage", "cpu_percent", 1),
        ("system/system_memory_usage_megabytes", "memory_bytes", 1e6),
    ):
        found = [(one.step, one.timestamp, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert found == [(step, int(row["time"] * 1000), row[column] / unit) for step, row in enumerate(rows)]
    history = client.get_metric_history(run.info.run_id, "tokens_per_second")
    assert max(history, key=lambda one: one.step).value == metrics_of(plans_of(run_dir)[key])["tokens_per_second"]
    assert run.data.metrics["tokens_per_second"] == metrics_of(plans_of(run_dir)[key])["tokens_per_second"]


def test_the_highest_barrier_of_a_merge_is_told(run_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "store"
    shutil.copytree(run_dir.parent.parent, copied)
    table = copied / "runs" / run_dir.name / "tables" / "merge_barrier.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    for line in lines[1:]:
        line[-1] = "0.75" if line[4:6] == ["bob", "merged"] else "0.5"
    table.write_text("\n".join(map(",".join, lines)) + "\n")
    found = metrics_of(plans_of(table.parent.parent)[f"{PLACE}/round=1"])
    assert found["merge/max_barrier"] == found["merge/barrier/bob to merged"] == 0.75
    assert found["merge/barrier/ann to merged"] == 0.5


def test_speed_and_memory_are_no_content(run_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "store"
    shutil.copytree(run_dir.parent.parent, copied)
    table = copied / "runs" / run_dir.name / "tables" / "branches.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    place = lines[0].index("tokens_per_second")
    for line in lines[1:]:
        line[place : place + 2] = ["12.5", "1024"]
    table.write_text("\n".join(map(",".join, lines)) + "\n")
    before, after = plans_of(run_dir), plans_of(table.parent.parent)
    key = f"{PLACE}/round=1/branch=ann"
    assert metrics_of(after[key])["peak_memory_bytes"] == 1024.0 and metrics_of(after[key])["tokens_per_second"] == 12.5
    assert {key: plan.content for key, plan in after.items()} == {key: plan.content for key, plan in before.items()}


def test_older_steps_and_runs_lack_what_they_did_not_measure(run_dir: Path, tmp_path: Path) -> None:
    from mot_core.report.html import write_report

    copied = tmp_path / "store"
    shutil.copytree(run_dir.parent.parent, copied)
    for path in copied.glob("objects/*/diagnostics.json"):
        said = json.loads(path.read_text())
        path.write_text(json.dumps({name: said[name] for name in ("drift", "agreement")}))
    older = ("num_steps", "num_examples", "num_parameters", "input_tokens", "tokens_per_second")
    for path in copied.glob("objects/*/training.jsonl"):
        entries = [
            {name: value for name, value in entry.items() if name != "held_out_loss"} for entry in read_jsonl(path)
        ]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        manifest = json.loads((path.parent / "manifest.json").read_text())
        manifest["counts"] = {name: manifest["counts"][name] for name in older}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))
    old = load_results(copied / "runs" / run_dir.name)
    assert old.merge_barrier.empty and old.merge_rank.empty and old.merge_cosine.empty
    assert len(old.merge_agreement) == 2 and old.training["held_out_loss"].isna().all()
    assert old.branches[["num_dropped_long", "best_step", "num_trained_parameters"]].isna().all(axis=None)
    text = write_report(old, tmp_path / "report").read_text()
    assert 'id="branches-table"' in text
    for absent in ("merge_barrier", "merge_rank", "held-out", "trained parameters"):
        assert absent not in text
    # A run whose tables were written before these existed is logged with what it has.
    tables = copied / "runs" / run_dir.name / "tables"
    for name in ("branches", "merge_drift", "merge_cosine", "merge_rank", "merge_barrier"):
        (tables / f"{name}.csv").unlink()
    found = metrics_of(plans_of(tables.parent)[f"{PLACE}/round=1"])
    assert {name for name in found if name.startswith("merge/")} == {
        f"merge/{name}" for name in ("mean_cosine", "min_cosine", "sign_agreement", "energy_kept")
    }


def test_the_report_shows_it(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    figures = {path.stem for path in (run_dir / "figures").iterdir()}
    assert {"merge_barrier_matched_path", "merge_rank_matched_path"} <= figures
    for shown in ('id="branch-losses-table"', 'id="barrier-matched_path"', "held out of training"):
        assert shown in text
