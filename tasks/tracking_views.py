"""The three views that an experiment's page in MLflow opens with, as MLflow's page stores and reads them.

A view is the state of MLflow's own runs page (filter, grouping, columns, charts), kept in a tag of the experiment: the
page lists it under its name, and a link opens it. Invariant: a view's key, and so its link, never changes; its content
follows from what the newest run of the experiment measured, so the same run logged again writes nothing.
Read by mlflow 3.17.2; its own word for all of this is a saved view.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mot_core.identity import canonical_json
from tasks.tracking_records import PlannedRun

TAG_PREFIX = "mlflow.sharedViewState."
LOCAL_SERVER = "http://127.0.0.1:5000"  # where `mlflow server` listens unless told otherwise
COLUMN_PIXELS = 180
_DEFLATED = "deflate;"
_SCORE = re.compile(r"(dev|test)/.+/avg_at_\d+")


@dataclass(frozen=True)
class View:
    """One view: the end of its tag's name, its name on MLflow's page, and the page's state."""

    key: str
    name: str
    state: Mapping[str, Any]


METHODS, ROUNDS, TEACHERS = "mot-methods", "mot-rounds", "mot-teachers"
NAMES = {
    METHODS: "Methods side by side",
    ROUNDS: "Accuracy by round",
    TEACHERS: "Teachers by dataset",
}


def views_of(plans: Sequence[PlannedRun]) -> list[View]:
    """The views of an experiment whose newest run is this plan; none of a study, whose runs are no methods."""
    methods = [plan for plan in plans if plan.tags["mot.role"] == "method"]
    if not methods:
        return []
    of_teachers = [plan for plan in methods if "mot.teacher" in plan.tags]
    where = f"tags.`mot.role` = 'method' AND tags.`mot.spec` = '{methods[0].tags['mot.spec']}'"
    return [_methods(methods, where), _rounds(methods, where), _teachers(of_teachers, where)]


# -- the three -----------------------------------------------------------------------------------------


def _methods(plans: Sequence[PlannedRun], where: str) -> View:
    names = _metric_names(plans)
    scores = _scores(names, "test")
    costs = [name for name in ("cost/training_tokens", "cost/teacher_tokens") if name in names]
    sections = {
        "Accuracy on test": [*map(_bar, scores)],
        "What it cost": [*map(_bar, costs)],
    }
    return _view(METHODS, where, _groups(plans, "param", "method"), names, sections, [*scores, *costs])


def _rounds(plans: Sequence[PlannedRun], where: str) -> View:
    names = _metric_names(plans)
    scores = _scores(names, "dev")
    sections = {"Accuracy on dev by round": [*map(_line, scores)]}
    return _view(ROUNDS, where, _groups(plans, "param", "method"), names, sections, scores)


def _teachers(plans: Sequence[PlannedRun], where: str) -> View:
    names = _metric_names(plans)
    scores = _scores(names, "test")
    own = [name for name in ("teacher/correct_share", "teacher/completion_tokens") if name in names]
    sections = {
        "Students of one teacher": [*map(_bar, scores)],
        "The teacher's own answers": [*map(_bar, own)],
    }
    of_teachers = f"{where} AND tags.`mot.teacher` LIKE '%'"
    return _view(TEACHERS, of_teachers, _groups(plans, "tag", "mot.teacher"), names, sections, [*scores, *own])


# -- the page's state ----------------------------------------------------------------------------------


def _view(
    key: str, where: str, groups: dict[str, Any], names: Sequence[str], sections: Mapping[str, list[dict[str, Any]]],
    columns: Sequence[str],
) -> View:  # fmt: skip
    """The page adds a chart for every metric that has none, so those that a view leaves out are put down as deleted;
    it sorts groups by their first column, the best first."""
    charts = [{**chart, "metricSectionId": title} for title, drawn in sections.items() for chart in drawn]
    drawn = {chart["metricKey"] for chart in charts}
    hidden = [{**_bar(name), "metricSectionId": key, "deleted": True} for name in names if name not in drawn]
    keys = [f"metrics.`{name}`" for name in columns]
    return View(
        key,
        NAMES[key],
        {
            "searchFilter": where, "orderByKey": keys[0] if keys else "attributes.start_time", "orderByAsc": False,
            "startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
            "selectedColumns": keys, "columnOrder": keys, "columnWidths": dict.fromkeys(keys, COLUMN_PIXELS),
            "runsHiddenMode": "SHOW_ALL", **groups, "useGroupedValuesInCharts": True, "compareRunCharts": [*charts, *hidden],
            "compareRunSections": [_section(title) for title, drawn in sections.items() if drawn],
            "isAccordionReordered": True, "hideEmptyCharts": True,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        },
    )  # fmt: skip


def _groups(plans: Sequence[PlannedRun], mode: str, name: str) -> dict[str, Any]:
    """Groups of runs that differ in their seed only, folded to a row each; by budget, too, where there are several."""
    keys, several = [{"mode": mode, "groupByData": name}], len({plan.params["budget"] for plan in plans}) > 1
    if several:
        keys.append({"mode": "param", "groupByData": "budget"})
    folded = []
    for plan in plans:
        value = (plan.tags if mode == "tag" else plan.params)[name]
        folded.append(f"{mode}.{name}.{value}" + (f",param.budget.{plan.params['budget']}" if several else ""))
    return {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys}, "groupsExpanded": dict.fromkeys(folded, False)
    }  # fmt: skip


def _section(title: str) -> dict[str, Any]:
    return {"uuid": title, "name": title, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}


def _bar(name: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": name, **_card(name)}


def _line(name: str) -> dict[str, Any]:
    return {
        "type": "LINE", "metricKey": name, "selectedMetricKeys": [name], "lineSmoothness": 0, "scaleType": "linear",
        "xAxisScaleType": "linear", "xAxisKey": "step", "selectedXAxisMetricKey": "", "range": {}, "displayPoints": True,
        "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False, "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True, **_card(name),
    }  # fmt: skip


def _card(name: str) -> dict[str, Any]:
    return {"uuid": name, "runsCountToCompare": 100, "deleted": False, "isGenerated": False}


def _metric_names(plans: Sequence[PlannedRun]) -> list[str]:
    return list(dict.fromkeys(name for plan in plans for name, _, _ in plan.metrics))


def _scores(names: Iterable[str], split: str) -> list[str]:
    """The names of the mean accuracy on a split, one a benchmark."""
    return [name for name in names if (match := _SCORE.fullmatch(name)) and match[1] == split]


# -- tags and links ------------------------------------------------------------------------------------


def tag_value(view: View, now_ms: int, old: str | None = None) -> str | None:
    """What the tag `TAG_PREFIX + view.key` is to hold, or None if it does already. A view's age stays what it was."""
    known = _decoded(old)
    if (
        known is not None
        and known["name"] == view.name
        and canonical_json(known["state"]) == canonical_json(view.state)
    ):
        return None
    packed = base64.b64encode(zlib.compress(canonical_json(view.state).encode(), 9)).decode()
    created = known["createdAt"] if known else now_ms
    return json.dumps({"name": view.name, "createdAt": created, "updatedAt": now_ms, "state": f"{_DEFLATED}{packed}"})


def _decoded(value: str | None) -> dict[str, Any] | None:
    """A view's tag as MLflow's page reads it; None of what is no such tag."""
    try:
        found: dict[str, Any] = json.loads(value or "")
        state = found["state"].removeprefix(_DEFLATED)
        return {**found, "state": json.loads(zlib.decompress(base64.b64decode(state)))}
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return None


def view_path(experiment_id: str, key: str, *, table: bool = False) -> str:
    """Where a view opens, from a server's address on: as charts, or as a table of the same runs."""
    mode = "" if table else "&compareRunsMode=CHART"
    return f"#/experiments/{quote(experiment_id)}/runs?viewStateShareKey={key}{mode}"


def view_links(tracking_uri: str, experiment_id: str) -> dict[str, str]:
    """The views' links by name, without the URI's credentials. Of a database they are those of a server that
    `server_command` starts."""
    server = LOCAL_SERVER if server_command(tracking_uri) else re.sub(r"://[^/@]*@", "://", tracking_uri).rstrip("/")
    return {name: f"{server}/{view_path(experiment_id, key)}" for key, name in NAMES.items()}


def server_command(tracking_uri: str) -> str | None:
    """The command that serves a database's pages where `view_links` points; None of a server, which is there."""
    if tracking_uri.startswith("http"):
        return None
    return f"mlflow server --backend-store-uri {tracking_uri} --port {LOCAL_SERVER.rpartition(':')[2]}"


def run_description(experiment_id: str) -> str:
    """The description on a run's page: its experiment's views, by links that hold at whatever address the page is read."""
    lines = [
        f"- [{name}]({view_path(experiment_id, key)}) ([table]({view_path(experiment_id, key, table=True)}))"
        for key, name in NAMES.items()
    ]
    return "\n".join(["Views of this experiment's newest run:", "", *lines])
