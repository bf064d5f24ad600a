"""An experiment's views in a real browser, on a real MLflow server: their links show the charts and rows that they are for."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.tracking_views import NAMES, view_links, view_path
from tests.processes import comes_to
from tests.servers import mlflow_server
from tests.tasks.runs import two_tracked_runs

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
PATIENCE_MS = 120_000
METHODS = {"base", "mot", "std/ann", "std/bob"}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory, pico_models: Path) -> tuple[str, list[Path]]:
    return two_tracked_runs(tmp_path_factory.mktemp("viewed"), pico_models)


@pytest.fixture(scope="module")
def server(two_runs: tuple[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server over the tracker's database; its whole process group is gone afterwards."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), two_runs[0]) as url:
        yield url


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest, server: str) -> Iterator[Any]:
    """A page of the session's browser, where other tests have one: a second Playwright in one thread is refused."""
    playwright = pytest.importorskip("playwright.sync_api")
    with contextlib.ExitStack() as stack:
        try:
            browser = request.getfixturevalue("browser")
        except pytest.FixtureLookupError:
            driver = stack.enter_context(playwright.sync_playwright())
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            stack.callback(browser.close)
        context = browser.new_context(viewport={"width": 1900, "height": 1200})
        stack.callback(context.close)
        opened = context.new_page()
        opened.set_default_timeout(PATIENCE_MS)
        yield opened


@pytest.fixture(scope="module")
def told(two_runs: tuple[str, list[Path]]) -> dict[str, str]:
    """What tracking recorded of the newer run."""
    record: dict[str, str] = json.loads((two_runs[1][1] / "tracking.json").read_text())
    return record


def show(page: Any, url: str, text: str) -> None:
    """Open a page and wait until it says this."""
    page.goto("about:blank")  # an address that differs after its # only would not be loaded anew
    page.goto(url, timeout=PATIENCE_MS)
    page.get_by_text(text, exact=True).first.wait_for()


def drawn(page: Any) -> dict[str, list[str]]:
    """What a view shows, once there is a chart: under `sections` their names, under `charts` their titles."""
    page.locator(".js-plotly-plot .main-svg").last.wait_for()

    def first_lines(test_id: str) -> list[str]:
        return [text.strip().partition("\n")[0] for text in page.get_by_test_id(test_id).all_inner_texts()]

    return {
        "sections": first_lines("experiment-view-compare-runs-section-header"),
        "charts": first_lines("experiment-view-compare-runs-card"),
    }


def groups(page: Any) -> set[str]:
    page.locator("text=/^Group: /").first.wait_for()
    return {text.removeprefix("Group: ").strip() for text in page.locator("text=/^Group: /").all_inner_texts()}


def test_methods_side_by_side(page: Any, server: str, told: dict[str, str]) -> None:
    """Of the newer run alone, a row a method, and no chart that MLflow draws by itself."""
    show(page, view_links(server, told["experiment_id"])["Methods side by side"], "Accuracy on test")
    comes_to(lambda: groups(page), METHODS)
    comes_to(
        lambda: drawn(page),
        {
            "sections": ["Accuracy on test", "What it cost"],
            "charts": ["test/sums/avg_at_2", "test/panel/avg_at_1", "cost/training_tokens", "cost/teacher_tokens"],
        },
    )
    page.get_by_test_id("saved-views-trigger").click()  # the page lists all three by name
    for name in NAMES.values():
        page.get_by_role("menuitem", name=name).wait_for()


def test_methods_as_a_table(page: Any, server: str, told: dict[str, str]) -> None:
    show(page, f"{server}/{view_path(told['experiment_id'], 'mot-methods', table=True)}", "test/panel/avg_at_1")
    comes_to(lambda: groups(page), METHODS)

    def columns() -> list[str]:
        headers = [text.strip() for text in page.get_by_role("columnheader").all_inner_texts()]
        return [name for name in dict.fromkeys(headers) if name.startswith("test/")]

    comes_to(columns, ["test/sums/avg_at_2", "test/panel/avg_at_1"])


def test_teachers_by_dataset(page: Any, server: str, told: dict[str, str]) -> None:
    show(page, view_links(server, told["experiment_id"])["Teachers by dataset"], "Students of one teacher")
    comes_to(lambda: groups(page), {"ann", "bob"})
    comes_to(
        lambda: drawn(page),
        {
            "sections": ["Students of one teacher", "The teacher's own answers"],
            "charts": [
                "test/sums/avg_at_2",
                "test/panel/avg_at_1",
                "teacher/correct_share",
                "teacher/completion_tokens",
            ],
        },
    )


def test_a_runs_description_leads_to_accuracy_by_round(page: Any, server: str, told: dict[str, str]) -> None:
    show(page, f"{server}/#/experiments/{told['experiment_id']}/runs/{told['parent_run_id']}", "Accuracy by round")
    with page.context.expect_page(timeout=PATIENCE_MS) as opening:
        page.get_by_role("link", name="Accuracy by round").click()
    opened = opening.value
    opened.set_default_timeout(PATIENCE_MS)
    opened.get_by_text("Accuracy on dev by round", exact=True).first.wait_for()
    comes_to(lambda: groups(opened), METHODS)
    comes_to(
        lambda: drawn(opened),
        {"sections": ["Accuracy on dev by round"], "charts": ["dev/sums/avg_at_1", "dev/panel/avg_at_1"]},
    )
    opened.close()


def test_a_branchs_page_has_system_metrics(
    page: Any, server: str, told: dict[str, str], two_runs: tuple[str, list[Path]]
) -> None:
    from mlflow import MlflowClient

    found = MlflowClient(two_runs[0]).search_runs([told["experiment_id"]], "tags.`mot.role` = 'branch'", max_results=1)
    place = f"{server}/#/experiments/{told['experiment_id']}/runs/{found[0].info.run_id}/system-metrics"
    show(page, place, "cpu_utilization_percentage")
    page.get_by_text("system_memory_usage_megabytes", exact=True).first.wait_for()
