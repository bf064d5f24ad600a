"""The form of an experiment, as a person meets it: filled in, refused, submitted; the run's page; cancelled there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from flows.deployed.parameters import experiment_names, registered_teachers
from flows.serving.services import start_of
from tests.browser.driver import PrefectPages
from tests.browser.pictures import mlflow_addresses
from tests.processes import descendants, wait_until
from tests.serving import Served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ONE_METHOD = ['methods=[{"name": "mot"}]', "evaluation.path.rounds=last"]


def test_a_form_filled_in_by_hand_is_a_run_with_its_logs_scores_and_tracker(page: Page, served: Served) -> None:
    prefect = PrefectPages(page, served.prefect)
    prefect.open_form("experiment")
    assert prefect.choices("Preset") == list(experiment_names())
    assert prefect.choices("Teachers") == list(registered_teachers())
    prefect.choose("Preset", "smoke")
    prefect.choose("Teachers", "running-total", "tens-and-ones")
    prefect.fill("Rounds", "101")
    page.get_by_role("button", name="Submit").click()
    assert prefect.complaint("Rounds") == "Value must be less than or equal to 100."
    prefect.fill("Rounds", "1")
    prefect.fill("Steps per round", "9")
    prefect.fill("Steps per round", "")  # a field that is emptied again is as if it had never been filled in
    prefect.choose("Merge rule", "mean")
    prefect.add("Training seeds", "2")
    prefect.add("Overrides", "\n".join(ONE_METHOD))
    run = prefect.submit()
    assert served.run(run)["parameters"] == {
        "parameters": {
            "preset": "smoke", "teachers": ["running-total", "tens-and-ones"], "rounds": 1, "merge_rule": "mean",
            "training_seeds": [2], "overrides": ["\n".join(ONE_METHOD)],
        }
    }  # fmt: skip
    assert served.ends(run, "COMPLETED")["run_count"] == 1
    prefect.sees(re.compile("^Completed$"))
    prefect.open_run(run, "Logs")
    prefect.sees(re.compile(r"steps, \d+ to run"))  # the flow's own line
    prefect.sees("prefect.task_runs")  # and those of its children
    prefect.tab("Artifacts")
    prefect.sees(re.compile("scores-smoke-round-1"))
    prefect.open_artifact("scores-smoke-round-1")
    prefect.sees("avg@k")
    page.get_by_role("cell", name="mot", exact=True).nth(1).wait_for()

    [address] = list(mlflow_addresses(served.mlflow, "smoke").values())[:1]
    page.goto(address.partition("?")[0])  # all runs, in no view
    page.get_by_text(re.compile(r"^smoke [0-9a-f]{8}")).first.wait_for()


def test_cancel_on_the_page_ends_the_processes(page: Page, served: Served) -> None:
    parameters = {"preset": "smoke", "rounds": 1, "steps_per_round": 100_000, "overrides": ONE_METHOD}
    run = served.submit("experiment/experiment", parameters)
    prefect = PrefectPages(page, served.prefect)
    pid = served.reaches(run, "finetune")
    prefect.open_run(run)
    prefect.sees(re.compile("^Running$"))
    children = {one: start_of(one) for one in descendants(pid)}
    prefect.act("Cancel", "Cancel Flow Run")
    wait_until(lambda: served.run(run)["state_type"] in ("CANCELLING", "CANCELLED"), 120, "the page's request")
    wait_until(lambda: not any(start_of(one) == began for one, began in children.items()), 60, "the children's end")
    served.ends(run, "CANCELLED")
    prefect.sees(re.compile("^Cancelled$"))


def test_the_older_pages_show_the_same_form(page: Page, served: Served) -> None:
    [found] = served.ask("/deployments/filter", {"deployments": {"name": {"any_": ["experiment"]}}})
    page.goto(f"{served.prefect}/deployments/deployment/{found['id']}/run")
    for title in ("Preset", "Teachers", "Merge rule", "Training seeds", "Overrides"):
        page.get_by_text(f"{title} (Optional)", exact=True).wait_for()
