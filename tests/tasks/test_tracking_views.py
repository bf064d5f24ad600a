"""The views of an experiment's page in MLflow: what they say, as MLflow's page reads it, and that logging keeps them."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from tasks.tracking import track_run
from tasks.tracking_plan import plan_run
from tasks.tracking_records import PlannedRun
from tasks.tracking_views import (
    METHODS,
    NAMES,
    ROUNDS,
    TAG_PREFIX,
    TEACHERS,
    run_description,
    server_command,
    tag_value,
    view_links,
    views_of,
)

# The fields of the page's state in mlflow 3.17.2; it reads these alone.
PAGE_FIELDS = {
    "searchFilter", "orderByKey", "orderByAsc", "startTime", "lifecycleFilter", "datasetsFilter", "modelVersionFilter",
    "selectedColumns", "columnOrder", "columnWidths", "runsHiddenMode", "compareRunCharts", "compareRunSections",
    "isAccordionReordered", "groupBy", "groupsExpanded", "useGroupedValuesInCharts", "hideEmptyCharts", "globalLineChartConfig",
}  # fmt: skip


def method_run(method: str, seed: int, teacher: str | None = None, budget: str = "matched_path") -> PlannedRun:
    metrics: list[tuple[str, float, int]] = [
        ("dev/sums/avg_at_1", 0.1, 1), ("dev/sums/pass_at_1", 0.1, 1), ("test/sums/avg_at_4", 0.2, 2),
        ("test/a/b/avg_at_16", 0.3, 2), ("test/sums/truncated_share", 0.0, 2), ("cost/training_tokens", 5.0, 0),
        *([("teacher/correct_share", 0.9, 0)] if teacher else []),
    ]  # fmt: skip
    tags = {"mot.role": "method", "mot.spec": "5bec", **({"mot.teacher": teacher} if teacher else {})}
    params = {"budget": budget, "method": method, "seed": str(seed)}
    return PlannedRun(f"{budget} {method} {seed}", "experiment", method, tags, {}, params, tuple(metrics))


RUNS = [method_run("mot", 1), method_run("mot", 2), method_run("std/ann", 1, "ann"), method_run("std/bob", 1, "bob")]


def states(runs: list[PlannedRun]) -> dict[str, dict[str, Any]]:
    return {view.key: dict(view.state) for view in views_of(runs)}


def as_the_page_reads_it(tag: str) -> tuple[str, dict[str, Any]]:
    """A tag's name on the page and its state, by the page's own steps: base64, zlib, JSON."""
    envelope = json.loads(tag)
    assert isinstance(envelope["createdAt"], int) and isinstance(envelope["updatedAt"], int)
    header, _, packed = envelope["state"].partition(";")
    assert header == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return envelope["name"], state


def shown(state: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The charts of each section of a page, as type and metric."""
    return {
        section["name"]: [
            (chart["type"], chart["metricKey"])
            for chart in state["compareRunCharts"]
            if chart["metricSectionId"] == section["uuid"] and not chart["deleted"]
        ]
        for section in state["compareRunSections"]
    }


def test_what_each_view_shows() -> None:
    found = states(RUNS)
    test = [("BAR", "test/sums/avg_at_4"), ("BAR", "test/a/b/avg_at_16")]
    assert shown(found[METHODS]) == {"Accuracy on test": test, "What it cost": [("BAR", "cost/training_tokens")]}
    assert shown(found[ROUNDS]) == {"Accuracy on dev by round": [("LINE", "dev/sums/avg_at_1")]}
    assert shown(found[TEACHERS]) == {
        "Students of one teacher": test, "The teacher's own answers": [("BAR", "teacher/correct_share")],
    }  # fmt: skip
    assert found[METHODS]["searchFilter"] == "tags.`mot.role` = 'method' AND tags.`mot.spec` = '5bec'"
    assert found[TEACHERS]["searchFilter"].endswith("AND tags.`mot.teacher` LIKE '%'")
    columns = ["metrics.`test/sums/avg_at_4`", "metrics.`test/a/b/avg_at_16`", "metrics.`cost/training_tokens`"]
    assert found[METHODS]["selectedColumns"] == found[METHODS]["columnOrder"] == columns
    assert found[METHODS]["orderByKey"] == columns[0] and found[METHODS]["orderByAsc"] is False
    assert all(state.keys() == PAGE_FIELDS for state in found.values())


def test_no_metric_is_left_for_the_page_to_draw_by_itself() -> None:
    metrics = {name for run in RUNS for name, _, _ in run.metrics}
    for key in (METHODS, ROUNDS):
        assert {chart["metricKey"] for chart in states(RUNS)[key]["compareRunCharts"]} == metrics


def test_a_group_is_a_method_and_where_there_are_several_a_budget() -> None:
    one = states(RUNS)[METHODS]
    assert one["groupBy"] == {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "param", "groupByData": "method"}],
    }
    folded = {"param.method.mot": False, "param.method.std/ann": False, "param.method.std/bob": False}
    assert one["groupsExpanded"] == folded
    assert states(RUNS)[TEACHERS]["groupsExpanded"] == {"tag.mot.teacher.ann": False, "tag.mot.teacher.bob": False}
    two = states([*RUNS, method_run("mot", 1, budget="matched_compute")])[METHODS]
    assert two["groupBy"]["groupByKeys"][1] == {"mode": "param", "groupByData": "budget"}
    assert "param.method.mot,param.budget.matched_compute" in two["groupsExpanded"]


def test_an_experiment_without_teachers_students_has_an_empty_view_of_them() -> None:
    found = states([method_run("mot", 1)])
    assert shown(found[TEACHERS]) == {} and found[TEACHERS]["orderByKey"] == "attributes.start_time"
    assert views_of([replace(RUNS[0], tags={"mot.role": "cell"})]) == []


def test_a_tag_is_read_back_and_written_once() -> None:
    view = views_of(RUNS)[0]
    tag = tag_value(view, 1_000)
    assert tag is not None and as_the_page_reads_it(tag) == ("Methods side by side", dict(view.state))
    assert tag_value(view, 2_000, tag) is None
    changed = tag_value(views_of(RUNS[:1])[0], 3_000, tag)
    assert changed is not None
    assert {name: json.loads(changed)[name] for name in ("createdAt", "updatedAt")} == {
        "createdAt": 1_000,
        "updatedAt": 3_000,
    }
    for damaged in ("", "{}", "[]", '{"name": "x", "state": "deflate;AAAA", "createdAt": 1}'):
        assert tag_value(view, 1_000, damaged) == tag


def test_hundreds_of_benchmarks_fit_a_tag() -> None:
    many = [(f"{split}/benchmark-{n}/avg_at_16", 0.1, 1) for n in range(300) for split in ("dev", "test")]
    tags = [tag_value(view, 1_000) for view in views_of([replace(RUNS[2], metrics=tuple(many))])]
    assert max(len(tag or "") for tag in tags) < 20_000  # MLflow refuses more


def test_links() -> None:
    link = "/#/experiments/7/runs?viewStateShareKey=mot-methods&compareRunsMode=CHART"
    assert view_links("http://me:secret@tracker:80/", "7")["Methods side by side"] == f"http://tracker:80{link}"
    assert view_links("sqlite:////s/mlflow.db", "7")["Methods side by side"] == f"http://127.0.0.1:5000{link}"
    assert list(view_links("http://tracker", "7")) == list(NAMES.values())
    assert server_command("https://tracker") is None
    assert (
        server_command("sqlite:////s/mlflow.db")
        == "mlflow server --backend-store-uri sqlite:////s/mlflow.db --port 5000"
    )
    assert f"[Methods side by side]({link[1:]}) ([table]({link[1:].partition('&')[0]}))" in run_description("7")


def test_a_flow_runs_page_links_to_the_views() -> None:
    from tasks.artifacts import view_lines

    lines = view_lines({"uri": "sqlite:////s/mlflow.db", "experiment_id": "7"})
    link = "http://127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=mot-rounds&compareRunsMode=CHART"
    assert lines[1] == f"- [Accuracy by round]({link})" and len(lines) == 4
    assert (
        lines[3]
        == "- these links hold while this runs: `mlflow server --backend-store-uri sqlite:////s/mlflow.db --port 5000`"
    )
    assert len(view_lines({"uri": "http://tracker:80", "experiment_id": "7"})) == 3
    assert view_lines({"uri": "http://tracker:80"}) == []  # not logged yet


def test_a_logged_run_has_its_views(two_runs: tuple[str, list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs the views are the newer one's; logging again writes none; another's view stays."""
    from mlflow import MlflowClient

    uri, (first, second) = two_runs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("pico").experiment_id
    client.set_experiment_tag(experiment, f"{TAG_PREFIX}mine", "{}")

    def tags() -> dict[str, str]:
        return dict(client.get_experiment(experiment).tags)

    store = Store(first.parent.parent)
    for run_dir in (first, second, second):
        before = tags()
        outcome = track_run(store, run_dir)
        assert (outcome.logged, outcome.problem, outcome.experiment_id) == (0, None, experiment)
        after = tags()
        views = {view.key: view for view in views_of(plan_run(store, run_dir))}
        assert set(after) == {f"{TAG_PREFIX}{key}" for key in (*views, "mine")} | {"mlflow.experimentKind"}
        for key, view in views.items():
            assert as_the_page_reads_it(after[f"{TAG_PREFIX}{key}"]) == (view.name, dict(view.state))
    assert before == after  # the third time nothing was left to say
    assert after["mlflow.experimentKind"] == "custom_model_development"
    parent = client.get_run(json.loads((second / "tracking.json").read_text())["parent_run_id"])
    assert parent.data.tags["mlflow.note.content"] == run_description(experiment)
    answers = {
        run.data.params["method"]: run.data.metrics.get("teacher/correct_share")
        for run in client.search_runs([experiment], "tags.`mot.role` = 'method'")
    }
    assert answers["mot"] is None and 0.0 <= answers["std/ann"] <= 1.0
