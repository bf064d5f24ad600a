"""From an empty folder to a comparison: servers up, an experiment from the form, a night by its schedule, both side by side in
MLflow, servers down."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest

from tests.browser.driver import PrefectPages
from tests.browser.pictures import ask
from tests.serving import PATIENCE, Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NIGHTLY = "nightly-ablation/nightly-ablation"
EVERY_OTHER_MINUTE = "*/2 * * * *"
ONE_METHOD = ['methods=[{"name": "mot"}]', "evaluation.path.rounds=last"]


def test_from_an_empty_folder_to_a_comparison(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path, MOT_NIGHTLY_CRON=EVERY_OTHER_MINUTE, MOT_NIGHTLY_TIMEZONE="UTC") as served:
        has_nights = plan_nights(served, "smoke")
        prefect = PrefectPages(page, served.prefect)
        prefect.open_form("experiment")
        prefect.choose("Preset", "smoke")
        prefect.fill("Rounds", "1")
        prefect.add("Overrides", "\n".join(ONE_METHOD))
        by_hand = prefect.submit()
        served.ends(by_hand, "COMPLETED")
        if has_nights:
            by_schedule = scheduled_run(served)
        else:  # until the nightly deployment is registered: a run that nobody watches
            parameters = {"preset": "smoke", "rounds": 1, "training_seeds": [2], "overrides": ONE_METHOD}
            by_schedule = served.submit("experiment/experiment", parameters)
        served.ends(by_schedule, "COMPLETED")

        tracked = [tracked_run(served, run) for run in (by_hand, by_schedule)]
        page.goto(comparison(served, tracked))
        page.get_by_text(re.compile("Comparing 2 Runs")).first.wait_for()
        for run in tracked:
            page.get_by_text(run["info"]["run_name"]).first.wait_for()
    # Nothing runs any more (`serving` looks), and what was found stays.
    assert (served.store / "mlflow.db").is_file() and (served.home / "prefect" / "prefect.db").is_file()
    assert len(list((served.store / "runs").glob("*/summary.json"))) >= 2


def plan_nights(served: Served, plan: str) -> bool:
    """Have the nightly deployment run a plan; whether there is such a deployment."""
    try:
        nightly = served.ask(f"/deployments/name/{NIGHTLY}")
    except HTTPError as error:
        if error.code == 404:
            return False
        raise
    [schedule] = nightly["schedules"]
    assert schedule["active"] and schedule["schedule"] == {
        "cron": EVERY_OTHER_MINUTE, "timezone": "UTC", "day_or": True,
    }  # fmt: skip
    served.ask(f"/deployments/{nightly['id']}", {"parameters": {"parameters": {"plan": plan}}}, "PATCH")
    return True


def scheduled_run(served: Served) -> str:
    """The first run that the schedule has started, once it is under way; the schedule is paused then."""
    nightly = served.ask(f"/deployments/name/{NIGHTLY}")
    wanted = {
        "deployments": {"id": {"any_": [nightly["id"]]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 1,
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "COMPLETED", "FAILED", "CRASHED"]}}},
    }  # fmt: skip
    end = time.monotonic() + 120 + PATIENCE
    while not (found := served.ask("/flow_runs/filter", wanted)):
        assert time.monotonic() < end, f"the schedule started nothing\n{served.log()}"
        time.sleep(1)
    assert found[0]["auto_scheduled"] and found[0]["parameters"]["parameters"]["plan"] == "smoke"
    served.ask(f"/deployments/{nightly['id']}/pause_deployment", {})
    return str(found[0]["id"])


def tracked_run(served: Served, flow_run: str) -> dict[str, Any]:
    """What MLflow has of a flow run."""
    api = f"{served.mlflow}/api/2.0/mlflow"
    experiments = ask(f"{api}/experiments/search", {"max_results": 100})["experiments"]
    wanted = {
        "experiment_ids": [one["experiment_id"] for one in experiments],
        "filter": f"tags.`mot.flow_run_id` = '{flow_run}' AND tags.`mot.role` = 'experiment'",
    }
    found: dict[str, Any] = ask(f"{api}/runs/search", wanted)["runs"][0]
    return found


def comparison(served: Served, tracked: list[dict[str, Any]]) -> str:
    """MLflow's page that compares runs, as its button opens it."""
    runs = json.dumps([run["info"]["run_id"] for run in tracked])
    experiments = json.dumps(sorted({run["info"]["experiment_id"] for run in tracked}))
    return f"{served.mlflow}/#/compare-runs?runs={quote(runs)}&experiments={quote(experiments)}"
