"""From an empty folder to a comparison: servers up, an experiment from the form, a night by its schedule, both side by side in
MLflow, servers down."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import yaml

from tests.browser.driver import PrefectPages
from tests.browser.pictures import ask
from tests.serving import PATIENCE, Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NIGHTLY = "nightly-ablation/nightly-ablation"
EVERY_OTHER_MINUTE = "*/2 * * * *"
PLAN = {
    "name": "near", "base": "smoke", "reference": {"method": "mot"}, "max_seeds": 1, "grid": {"merge.rule": ["ties"]},
    "set": ["methods=[{name: std}, {name: mot}]", "rounds=1", "evaluation.path.rounds=last"],
    "canary": {"base": "smoke", "set": ["methods=[{name: mot}]", "rounds=1", "evaluation.path.rounds=last"]},
}  # fmt: skip
ONE_METHOD = ['methods=[{"name": "mot"}]', "evaluation.path.rounds=last"]


def test_from_an_empty_folder_to_a_comparison(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path, MOT_NIGHTLY_CRON=EVERY_OTHER_MINUTE, MOT_NIGHTLY_TIMEZONE="UTC") as served:
        nightly = plan_nights(served)
        prefect = PrefectPages(page, served.prefect)
        prefect.open_form("experiment")
        prefect.choose("Preset", "smoke")
        prefect.fill("Rounds", "1")
        prefect.add("Overrides", "\n".join(ONE_METHOD))
        by_hand = prefect.submit()
        served.ends(by_hand, "COMPLETED")
        by_schedule = night_of(served, nightly)
        digest = served.ask("/artifacts/filter", {"artifacts": {"key": {"any_": ["nightly-near"]}}})
        assert by_schedule in {artifact["flow_run_id"] for artifact in digest}

        tracked = [tracked_run(served, run) for run in (by_hand, by_schedule)]
        page.goto(comparison(served, tracked))
        page.get_by_text(re.compile("Comparing 2 Runs")).first.wait_for()
        for run in tracked:
            page.get_by_text(run["info"]["run_name"]).first.wait_for()
    # Nothing runs any more (`serving` looks), and what was found stays.
    assert (served.store / "mlflow.db").is_file() and (served.home / "prefect" / "prefect.db").is_file()
    assert len(list((served.store / "runs").glob("*/summary.json"))) >= 2


def plan_nights(served: Served) -> str:
    """Have the nightly deployment run a plan of one small cell; the deployment's id."""
    plan = served.store / "near.yaml"
    plan.write_text(yaml.safe_dump(PLAN))
    nightly = served.ask(f"/deployments/name/{NIGHTLY}")
    [schedule] = nightly["schedules"]
    assert schedule["active"] and schedule["schedule"] == {
        "cron": EVERY_OTHER_MINUTE, "timezone": "UTC", "day_or": True,
    }  # fmt: skip
    served.ask(f"/deployments/{nightly['id']}", {"parameters": {"parameters": {"plan": str(plan)}}}, "PATCH")
    return str(nightly["id"])


def night_of(served: Served, nightly: str) -> str:
    """The first night that its schedule has started and that did not make way for another run, once it has ended."""
    wanted = {
        "deployments": {"id": {"any_": [nightly]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 50,
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
    }  # fmt: skip
    end = time.monotonic() + PATIENCE
    while True:
        ended = served.ask("/flow_runs/filter", wanted)
        assert all(run["state_type"] == "COMPLETED" for run in ended), [run["state"] for run in ended]
        night = next((run for run in ended if run["state_name"] == "Completed"), None)
        if night is not None:
            assert night["auto_scheduled"]
            served.ask(f"/deployments/{nightly}/pause_deployment", {})
            return str(night["id"])
        assert time.monotonic() < end, f"no night was worked through: {[run['state'] for run in ended]}\n{served.log()}"
        time.sleep(1)


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
