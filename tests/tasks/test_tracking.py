"""Tracking against a real run and a real MLflow: the tree, idempotency, interruption, a tracker that is away."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from mot_core.files import read_jsonl
from mot_core.runs import read_index
from tasks import tracking
from tasks.tracking import TrackingOutcome, track_pending, track_run, tracking_uri
from tasks.tracking_plan import plan_run
from tasks.tracking_records import flatten, metric_name, param_value, short_text
from tests.pico import pico_experiment
from tests.servers import MLFLOW_PATIENCE, mlflow_server
from tests.tasks.runs import computed_run

AWAY = "http://someone:hunter2@127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(scope="session")
def untracked(tmp_path_factory: pytest.TempPathFactory, pico_models: Path) -> Path:
    """The store of one real pico run that met no tracker: every step, in this process, without an orchestrator."""
    root = tmp_path_factory.mktemp("tracking") / "store"
    computed_run(root, pico_experiment(pico_models), AWAY)
    return root


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory, untracked: Path) -> tuple[Path, TrackingOutcome]:
    """That store with its run logged into its own database."""
    root = tmp_path_factory.mktemp("tracked") / "store"
    shutil.copytree(untracked, root)
    outcome = track_run(Store(root), run_dir_of(root))
    assert outcome.problem is None, outcome
    return root, outcome


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path, tracked: tuple[Path, TrackingOutcome]) -> Store:
    """A copy of the tracked store, to be changed."""
    shutil.copytree(tracked[0], tmp_path / "store")
    return Store(tmp_path / "store")


def run_dir_of(root: Path) -> Path:
    (run_dir,) = (root / "runs").iterdir()
    return run_dir


def client_of(store: Store, uri: str | None = None) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri or tracking_uri(store))


def runs_of(client: Any) -> dict[str, Any]:
    """The live runs by key; one a key, or the test fails."""
    experiment = client.get_experiment_by_name("pico")
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    by_key = {run.data.tags["mot.key"]: run for run in runs}
    assert len(by_key) == len(runs)
    return by_key


def snapshot(client: Any, histories_of: str = "") -> dict[str, Any]:
    """Everything that logging again must not change. Over HTTP a history takes its time, so choose whose."""
    runs = runs_of(client)
    experiment = client.get_experiment_by_name("pico").experiment_id
    return {
        "models": sorted(model.model_id for model in client.search_logged_models([experiment])),
        **{
            key: (
                run.info.run_id, run.data.params, run.data.tags, len(run.inputs.dataset_inputs),
                {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                 for name in run.data.metrics if histories_of in key},
            )
            for key, run in runs.items()
        },
    }  # fmt: skip


def content_of(taken: dict[str, Any]) -> dict[str, Any]:
    """A snapshot without what differs between two trackers: their ids."""
    return {
        key: (value[1], value[4], value[3], value[2]["mot.complete"]) for key, value in taken.items() if key != "models"
    }


def test_the_tree_has_every_method_round_and_branch(tracked: tuple[Path, TrackingOutcome]) -> None:
    root, outcome = tracked
    runs = runs_of(client_of(Store(root)))
    index = read_index(run_dir_of(root))
    ids = {run.info.run_id: run for run in runs.values()}
    roles: dict[str, int] = {}
    for run in runs.values():
        role = run.data.tags["mot.role"]
        roles[role] = roles.get(role, 0) + 1
        parent = ids.get(run.data.tags.get("mlflow.parentRunId", ""))
        expected = {"experiment": None, "method": "experiment", "round": "method", "branch": "method"}[role]
        assert (parent.data.tags["mot.role"] if parent else None) == expected
        assert run.info.status == "FINISHED"
        assert run.data.tags["mot.spec"] == index["spec_identity"]
        if role in ("round", "branch"):
            assert parent is not None and parent.data.tags["mot.method"] == run.data.tags["mot.method"]
    # base, two std, merge_once, mot, ensemble, shuffled; merges 1 + 2 + 2; branches 2 × 1 + 2 + 4 + 4.
    assert roles == {"experiment": 1, "method": 7, "round": 5, "branch": 12}
    assert (outcome.logged, outcome.unchanged) == (25, 0)
    assert runs["experiment"].info.run_id == outcome.parent_run_id
    assert runs["experiment"].data.tags["mot.git_commit"] == index["provenance"]["commit"]
    # A vote over others' answers has no step of its own; all else took time, and is over.
    instant = [key for key, run in runs.items() if run.info.end_time == run.info.start_time]
    assert instant == ["budget=matched_path/method=ensemble/seed=1"]
    assert all(run.info.end_time <= 1000 * time.time() for run in runs.values())
    wall = json.loads((run_dir_of(root) / "summary.json").read_text())["wall_seconds"]
    took = runs["experiment"].info.end_time - runs["experiment"].info.start_time
    assert took == pytest.approx(1000 * wall, abs=2)


def test_metrics_are_those_of_the_summary(tracked: tuple[Path, TrackingOutcome]) -> None:
    root, _ = tracked
    client = client_of(Store(root))
    runs = runs_of(client)
    summary = json.loads((run_dir_of(root) / "summary.json").read_text())
    compared = 0
    for method, facts in summary["budgets"]["matched_path"].items():
        run = runs[f"budget=matched_path/method={method}/seed=1"]
        for benchmark, scores in facts["benchmarks"].items():
            name = f"test/{benchmark}/avg_at_{scores['k']}"
            assert run.data.metrics[name] == scores["per_seed"]["1"]
            assert runs["experiment"].data.metrics[f"matched_path/{method}/{name}"] == scores["avg_at_k"]
            compared += 1
        for row in facts["rounds"]:
            for benchmark, scores in row["benchmarks"].items():
                history = client.get_metric_history(run.info.run_id, f"dev/{benchmark}/avg_at_{scores['k']}")
                assert {point.step: point.value for point in history}[row["round"]] == scores["per_seed"]["1"]
        if method != "base":
            assert run.data.metrics["cost/training_tokens"] == facts["cost"]["training_tokens"]
    assert compared == 14
    assert "test/sums/pass_at_2" in run.data.metrics
    branch = runs["budget=matched_path/method=mot/seed=1/round=2/branch=ann"]
    identity = branch.data.tags["mot.identity"]
    entries = read_jsonl(root / "objects" / identity / "training.jsonl")
    history = client.get_metric_history(branch.info.run_id, "loss")
    assert {m.step: m.value for m in history} == {e["step"]: e["loss"] for e in entries}
    assert branch.data.tags["mot.teacher"] == "ann" and branch.data.tags["mot.round"] == "2"


def test_corpora_and_benchmarks_are_inputs(tracked: tuple[Path, TrackingOutcome]) -> None:
    root, _ = tracked
    nodes = read_index(run_dir_of(root))["nodes"]
    runs = runs_of(client_of(Store(root)))

    def inputs(key: str) -> set[tuple[str, str, str]]:
        return {(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in runs[key].inputs.dataset_inputs}

    mot = inputs("budget=matched_path/method=mot/seed=1")
    assert {one for one in mot if one[2] == "training"} == {
        ("corpus/ann", nodes["corpora"], "training"), ("corpus/bob", nodes["corpora"], "training"),
    }  # fmt: skip
    assert {one[0] for one in mot if one[2] == "evaluation"} == {
        f"benchmark/{name}/{split}" for name in ("sums", "panel") for split in ("dev", "test")
    }
    ann = inputs("budget=matched_path/method=mot/seed=1/round=1/branch=ann")
    assert ann == {("corpus/ann", nodes["corpora"], "training")}
    assert mot < inputs("experiment")


def test_merged_students_carry_their_lineage(tracked: tuple[Path, TrackingOutcome]) -> None:
    root, _ = tracked
    client = client_of(Store(root))
    runs = runs_of(client)
    experiment = client.get_experiment_by_name("pico").experiment_id
    models = {model.tags["mot.identity"]: model for model in client.search_logged_models([experiment])}
    assert len(models) == 5 and all(model.status == "READY" for model in models.values())
    prefix = "budget=matched_path/method=mot/seed=1"
    first, second = (runs[f"{prefix}/round={r}"] for r in (1, 2))
    model = models[second.data.tags["mot.identity"]]
    assert json.loads(model.tags["mot.parents"]) == {
        name: runs[f"{prefix}/round=2/branch={name}"].data.tags["mot.identity"] for name in ("ann", "bob")
    }
    assert model.tags["mot.start"] == first.data.tags["mot.identity"]
    assert model.tags["mot.round"] == "2" and model.source_run_id == second.info.run_id
    manifest = Store(root).manifest(second.data.tags["mot.identity"])
    assert manifest is not None
    assert model.tags["mot.sha256"] == manifest.files["model.safetensors"]["sha256"]
    assert [one.model_id for one in second.outputs.model_outputs] == [model.model_id]
    assert not list((root / "mlartifacts").rglob("*.safetensors"))


def test_artifacts_are_on_the_parent(tracked: tuple[Path, TrackingOutcome]) -> None:
    root, outcome = tracked
    client = client_of(Store(root))
    names = {item.path for item in client.list_artifacts(outcome.parent_run_id)}
    assert names == {"spec.yaml", "report.html", "tables", "figures"}
    assert "tables/scores.csv" in {item.path for item in client.list_artifacts(outcome.parent_run_id, "tables")}
    assert json.loads((run_dir_of(root) / "tracking.json").read_text()) == {
        "state": "logged", "uri": f"sqlite:///{root}/mlflow.db", "problem": None,
        "parent_run_id": outcome.parent_run_id, "experiment_id": outcome.experiment_id,
    }  # fmt: skip


def test_logging_again_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(store)
    before = snapshot(client)
    # Another invocation of the same spec: other run id, commit, clock, states and seconds of steps.
    again = store.root / "runs" / "pico-again"
    shutil.copytree(run_dir_of(store.root), again)
    index = json.loads((again / "index.json").read_text())
    index["provenance"] |= {"commit": "0" * 40, "started": 1.0}
    (again / "index.json").write_text(json.dumps(index))
    (again / "tables" / "steps.csv").write_text("identity\n")
    (again / "report.html").write_text("another clock")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    outcome = track_run(store, again)
    assert (outcome.logged, outcome.unchanged, outcome.problem) == (0, 25, None)
    assert snapshot(client) == before
    assert os.environ["MLFLOW_RUN_ID"] == "0" * 32


def test_a_run_without_its_last_tag_is_logged_again(store: Store) -> None:
    client = client_of(store)
    before = snapshot(client)
    keys = ("experiment", "budget=matched_path/method=mot/seed=1", "budget=matched_path/method=mot/seed=1/round=1")
    for key in keys:
        client.delete_tag(before[key][0], "mot.complete")
    outcome = track_run(store, run_dir_of(store.root))
    assert (outcome.logged, outcome.unchanged, outcome.problem) == (3, 22, None)
    after = snapshot(client)
    assert content_of(after) == content_of(before)
    assert {key for key in after if key != "models" and after[key][0] != before[key][0]} == set(keys)
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs_of(client).values()}
    assert parents <= {None, *(after[key][0] for key in after if key != "models")}
    assert len(after["models"]) == 5


@pytest.mark.parametrize("method", ["log_batch", "create_logged_model", "set_terminated", "delete_run"])
def test_logging_that_is_cut_off_heals(store: Store, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from mlflow import MlflowClient

    client = client_of(store)
    before = snapshot(client)
    for key in [key for key in before if "method=mot" in key]:
        client.delete_tag(before[key][0], "mot.complete")
    calls = []
    original = getattr(MlflowClient, method)

    def die(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, die)
        with pytest.raises(KeyboardInterrupt):
            track_run(store, run_dir_of(store.root))
    state = json.loads((run_dir_of(store.root) / "tracking.json").read_text())
    assert state["state"] == "pending" and state["problem"] == "tracking was interrupted"
    (outcome,) = track_pending(store)
    assert outcome.problem is None
    assert content_of(snapshot(client)) == content_of(before)
    assert len(snapshot(client)["models"]) == 5
    assert track_run(store, run_dir_of(store.root)).logged == 0


def test_changed_results_replace_what_was_logged(store: Store) -> None:
    client = client_of(store)
    before = snapshot(client)
    table = run_dir_of(store.root) / "tables" / "scores.csv"
    lines = table.read_text().splitlines()
    changed = next(i for i, line in enumerate(lines) if ",ensemble," in line and ",test," in line)
    table.write_text("\n".join([*lines, lines[changed].replace(",sums,", ",grown,")]) + "\n")
    outcome = track_run(store, run_dir_of(store.root))
    assert (outcome.logged, outcome.unchanged) == (2, 23)  # the vote, and the parent, which holds the table
    after = snapshot(client)
    key = "budget=matched_path/method=ensemble/seed=1"
    assert set(after[key][4]) - set(before[key][4]) >= {"test/grown/avg_at_2"}


def test_a_tracker_that_is_away_leaves_the_run_pending(
    tmp_path: Path, untracked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fixture's own run met no tracker; neither does this one; then one comes."""
    shutil.copytree(untracked, tmp_path / "store")
    store = Store(tmp_path / "store")
    run_dir = run_dir_of(store.root)
    assert json.loads((run_dir / "tracking.json").read_text())["state"] == "pending"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    started = time.monotonic()
    outcome = track_run(store, run_dir)
    assert time.monotonic() - started < 60  # by itself MLflow asks again for many minutes
    assert outcome.problem and outcome.parent_run_id is None and outcome.logged == 0
    text = (run_dir / "tracking.json").read_text()
    assert json.loads(text)["state"] == "pending" and "127.0.0.1" in text
    assert "hunter2" not in text + caplog.text + repr(outcome) and "someone" not in text + caplog.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (later,) = track_pending(store)
    assert (later.logged, later.problem) == (25, None)
    assert track_pending(store) == []


def test_a_server_that_says_nothing_is_given_up_soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and never answers."""
    monkeypatch.setattr(tracking, "PROBE_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        outcome = track_run(store, run_dir_of(store.root))
    assert outcome.problem is not None
    assert time.monotonic() - started < 60


def test_a_run_without_tables_fails_alone(store: Store) -> None:
    """One damaged run is reported and does not keep the others from being logged."""
    damaged = store.root / "runs" / "aaa-damaged"
    shutil.copytree(run_dir_of(store.root), damaged)
    shutil.rmtree(damaged / "tables")
    (damaged / "tracking.json").write_text('{"state": "pending"}')
    whole = next(path for path in (store.root / "runs").iterdir() if path != damaged)
    assert track_run(store, whole).problem is None
    assert "no report was written" in json.loads((damaged / "tracking.json").read_text())["problem"]


def test_names_and_values_fit_every_store(store: Store) -> None:
    assert metric_name("test", "aime@24", "avg_at_16") == "test/aime_24/avg_at_16"
    assert metric_name("std/qwen:7b", "..", "x") == "std/qwen_7b/_/x"
    assert len(metric_name("x" * 500)) < 250
    assert short_text("a\nb\x1b[31m") == "a b [31m"
    assert param_value("y" * 9000).endswith("… [cut: 9000 characters; whole in spec.yaml]")
    assert len(param_value("y" * 9000)) < 6000
    assert dict(flatten({"a": {"b": 1, "c": None}, "d": [1, 2]})) == {"a.b": "1", "d": "[1,2]"}
    assert plan_run(store, run_dir_of(store.root)) == plan_run(store, run_dir_of(store.root))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server; its whole process group is gone afterwards."""
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/server.db") as url:
        yield url


@pytest.mark.slow
def test_a_real_server(store: Store, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(client_of(store), "method=mot/seed=1/round=2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for name, value in MLFLOW_PATIENCE.items():
        monkeypatch.setenv(name, value)
    outcome = track_run(store, run_dir_of(store.root))
    assert (outcome.logged, outcome.problem, outcome.tracking_uri) == (25, None, server)
    client = client_of(store, server)
    taken = snapshot(client, "method=mot/seed=1/round=2")
    assert content_of(taken) == content_of(before)
    assert {item.path for item in client.list_artifacts(outcome.parent_run_id)} >= {"report.html", "tables"}
    again = track_run(store, run_dir_of(store.root))
    assert (again.logged, again.unchanged) == (0, 25)
    assert snapshot(client, "method=mot/seed=1/round=2") == taken
