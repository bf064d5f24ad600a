"""Pictures of both servers' pages on a finished run, for README and docs: `make pictures`.

Each is taken once the page shows the texts that it is about, so that none is taken of a page that is still loading.

    python -m tests.browser.pictures --out docs/images                          servers of its own, and a run of lab
    python -m tests.browser.pictures --prefect URL --mlflow URL --out DIR       the newest finished experiment there
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import Request, urlopen

from PIL import Image

from tests.browser.driver import WIDTH, PrefectPages, chromium, loopback_page
from tests.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Page

MAX_BYTES = 150_000
COLOURS = (256, 128, 64, 32, 16)
VIEW_TAG = "mlflow.sharedViewState."
RUN_SECONDS = 3600.0


def take_pictures(page: Page, prefect_url: str, mlflow_url: str, out: Path) -> dict[str, Path]:
    """Take every picture; the files by name.

    Raises:
        ValueError: no finished experiment there.
        playwright.sync_api.TimeoutError: a page that does not show what it is about.
    """
    out.mkdir(parents=True, exist_ok=True)
    prefect = PrefectPages(page, prefect_url)
    run = newest_run(prefect_url)
    taken = {
        "prefect-form": picture_of_form(prefect, out),
        "prefect-run": picture_of_run(prefect, run, out),
        "prefect-scores": picture_of_scores(prefect, run, out),
    }
    for name, address in mlflow_addresses(mlflow_url, str(run["parameters"]["parameters"]["preset"])).items():
        taken[name] = picture_of_runs(page, address, out / f"{name}.png")
    return taken


def picture_of_form(prefect: PrefectPages, out: Path) -> Path:
    """The form, half filled in."""
    page = prefect.page
    page.set_viewport_size({"width": WIDTH, "height": 1250})
    prefect.open_form("experiment")
    prefect.choose("Teachers", "running-total", "tens-and-ones")
    prefect.fill("Rounds", "3")
    prefect.choose("Merge rule", "ties")
    prefect.sees("how branches become the next student")
    page.evaluate("document.activeElement.blur()")
    page.mouse.wheel(0, -5000)
    return save(page, out / "prefect-form.png", {"x": 0, "y": 0, "width": WIDTH, "height": 1130})


def picture_of_run(prefect: PrefectPages, run: dict[str, Any], out: Path) -> Path:
    """The flow run's page: its time line, and below it the task runs."""
    page = prefect.page
    page.set_viewport_size({"width": WIDTH, "height": 1000})
    prefect.open_run(run["id"], "Task Runs")
    prefect.sees(re.compile("^finetune "))
    page.wait_for_timeout(3000)  # the time line is drawn on a canvas, which holds no text to wait for
    return save(page, out / "prefect-run.png", {"x": 0, "y": 0, "width": WIDTH, "height": 900})


def picture_of_scores(prefect: PrefectPages, run: dict[str, Any], out: Path) -> Path:
    """The artifact with the last round's scores."""
    page = prefect.page
    prefect.open_run(run["id"], "Artifacts")
    shown = page.get_by_text(re.compile(r"^scores-.+-round-\d+$"))
    shown.first.wait_for()
    prefect.open_artifact(max(shown.all_inner_texts(), key=lambda name: int(name.rpartition("-")[2])))
    prefect.sees("avg@k")
    page.wait_for_timeout(500)
    return save(page, out / "prefect-scores.png", {"x": 0, "y": 0, "width": WIDTH, "height": 800})


def picture_of_runs(page: Page, address: str, path: Path) -> Path:
    """An experiment's runs in MLflow."""
    page.set_viewport_size({"width": WIDTH, "height": 900})
    page.goto("about:blank")  # an address that differs after its # only would not be loaded anew
    page.goto(address)
    page.get_by_text("mot", exact=False).first.wait_for()
    assistant = page.get_by_text("MLflow Assistant", exact=True)
    if assistant.count():
        assistant.locator("xpath=ancestor::*[.//button][1]").get_by_role("button").last.click()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    page.wait_for_timeout(6000)  # charts come one by one
    return save(
        page, path, {"x": 0, "y": 0, "width": 1036, "height": 900}
    )  # beside it the assistant, where it stays open


def newest_run(prefect_url: str) -> dict[str, Any]:
    """The newest completed flow run of the deployment `experiment`."""
    wanted = {
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "deployments": {"name": {"any_": ["experiment"]}},
        "sort": "END_TIME_DESC", "limit": 1,
    }  # fmt: skip
    found: list[dict[str, Any]] = ask(f"{prefect_url}/api/flow_runs/filter", wanted)
    if not found:
        raise ValueError(
            f"{prefect_url} has no completed run of the deployment experiment; submit one, or give no --prefect"
        )
    return found[0]


def mlflow_addresses(mlflow_url: str, preset: str) -> dict[str, str]:
    """Where MLflow shows the preset's experiment: its saved views as charts, by the end of their tags' names, else its charts."""
    found = ask(f"{mlflow_url}/api/2.0/mlflow/experiments/search", {"max_results": 100})
    name = preset.partition(":")[0]
    [experiment] = [one for one in found["experiments"] if one["name"] == name]
    page = f"{mlflow_url}/#/experiments/{quote(experiment['experiment_id'])}/runs"
    keys = [tag["key"].removeprefix(VIEW_TAG) for tag in experiment.get("tags", []) if tag["key"].startswith(VIEW_TAG)]
    if not keys:
        return {"mlflow-runs": f"{page}?compareRunsMode=CHART"}
    return {
        f"mlflow-{key.removeprefix('mot-')}": f"{page}?viewStateShareKey={quote(key)}&compareRunsMode=CHART"
        for key in sorted(keys)
    }


def ask(url: str, body: dict[str, Any]) -> Any:
    """A server's answer to a JSON request."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def save(page: Page, path: Path, clip: FloatRect | None = None) -> Path:
    """What the page shows, as a PNG of few colours."""
    with Image.open(io.BytesIO(page.screenshot(clip=clip) if clip else page.screenshot())) as shot:
        path.write_bytes(compressed(shot.convert("RGB")))
    return path


def compressed(image: Image.Image) -> bytes:
    """A PNG of at most `MAX_BYTES`, of as many colours as that allows.

    Raises:
        ValueError: more even with the fewest.
    """
    for colours in COLOURS:
        file = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= MAX_BYTES:
            return file.getvalue()
    raise ValueError(f"a picture of {image.size} takes {file.tell()} bytes with {colours} colours; at most {MAX_BYTES}")


def with_own_servers(preset: str, use: Callable[[str, str], None]) -> None:
    """Start servers in a temporary folder, run a preset with one training seed through its deployment, use them, stop them."""
    with tempfile.TemporaryDirectory(prefix="mot-pictures-") as folder, serving(Path(folder)) as served:
        run = served.submit("experiment/experiment", {"preset": preset, "training_seeds": [1]})
        served.ends(run, "COMPLETED", RUN_SECONDS)
        use(served.prefect, served.mlflow)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Pictures of Prefect's and MLflow's pages on a finished run.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prefect", metavar="URL", help="with --mlflow: servers that run; absent: of its own")
    parser.add_argument("--mlflow", metavar="URL")
    parser.add_argument("--preset", default="lab", help="what servers of its own run")
    given = parser.parse_args()
    if (given.prefect is None) != (given.mlflow is None):
        parser.error("give both --prefect and --mlflow, or neither")

    def use(prefect_url: str, mlflow_url: str) -> None:
        with chromium() as browser, loopback_page(browser) as page:
            for path in take_pictures(page, prefect_url.rstrip("/"), mlflow_url.rstrip("/"), given.out).values():
                print(path)

    if given.prefect is None:
        with_own_servers(given.preset, use)
    else:
        use(given.prefect, given.mlflow)


if __name__ == "__main__":
    main()
