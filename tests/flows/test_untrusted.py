"""What runs leave behind holds no secret of the environment, and what a model wrote only as text.

Real commands with a Prefect and an MLflow server of their own, an endpoint that echoes the key, a completer that prints its
environment, and hostile rationales and answers. Then a search through every byte of the store, both databases, artifacts,
reports and outputs; and a browser that opens the report.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from flows.show import step_logs
from mot_core.artifacts import Store
from mot_core.lab.families import draw_problems
from mot_core.runs import read_index
from tests.endpoint import Call, Endpoint, Reply, reply, status
from tests.flows.hostile import HOSTILE
from tests.pico import pico_document, style_of
from tests.processes import ROOT, write_spec
from tests.servers import MLFLOW_ENVIRONMENT, MLFLOW_PATIENCE, free_port, running

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
CANARIES = {
    name: f"canary-{number}-of-{name.lower().replace('_', '-')}-4711"
    for number, name in enumerate(
        (
            "MOT_TEACHER_KEY", "PROVIDER", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "WANDB_API_KEY", "MY_PASSWORD", "PREFECT_API_KEY",
        ),
        10,
    )
}  # fmt: skip
USER, PASSWORD = "canary-user-4711", "canary-password 4711"
CREDENTIALS = f"{USER}:{quote(PASSWORD)}"
ALL = [*CANARIES.values(), USER, PASSWORD]


class Proxy:
    """It refuses, quoting the request's head in several encodings, until it is told to answer those with the key."""

    answers = False

    def __call__(self, call: Call) -> Reply:
        if self.answers and call.authorization == f"Bearer {CANARIES['PROVIDER']}":
            return reply(style_of(call.question, "running-total"))
        key = call.authorization.removeprefix("Bearer ")
        encoded = base64.b64encode(f"user:{key}".encode()).decode()
        return status(
            401, f"Authorization: {call.authorization} {quote(key)} Basic {encoded}\n\x1b[31m{key!r}", error_code=key
        )


@dataclass
class Place:
    """The servers, the environment with secrets, and everything that was printed."""

    root: Path
    environment: dict[str, str]
    printed: list[str] = field(default_factory=list)

    def mot(self, *arguments: str, code: int = 0, **more: str) -> str:
        """A `mot` command, which ends with `code`; what it printed."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "flows", *arguments], cwd=self.root, env={**self.environment, **more},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        self.printed.append(done.stdout + done.stderr)
        assert done.returncode == code, self.printed[-1][-4000:]
        return self.printed[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Servers of both kinds; clients are given their addresses with user and password."""
    root = tmp_path_factory.mktemp("canary")
    prefect, mlflow = free_port(), free_port()
    environment = {
        **os.environ, "PREFECT_HOME": str(root / "prefect-home"), "PYTHONPATH": str(ROOT), "TMPDIR": str(root / "tmp"),
        "PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{root}/prefect.db",
    }  # fmt: skip
    (root / "tmp").mkdir()
    python = [sys.executable, "-W", "ignore", "-m"]
    prefect_server = [*python, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect)]
    mlflow_server = [
        *python, "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", str(root / "mlartifacts"),
    ]  # fmt: skip
    with (
        running(prefect_server, root, "prefect-server", environment, f"http://127.0.0.1:{prefect}/api/health"),
        running(
            mlflow_server,
            root,
            "mlflow-server",
            {**environment, **MLFLOW_ENVIRONMENT},
            f"http://127.0.0.1:{mlflow}/health",
        ),
    ):
        secrets = {
            **CANARIES, "PREFECT_API_URL": f"http://{CREDENTIALS}@127.0.0.1:{prefect}/api",
            "MLFLOW_TRACKING_URI": f"http://{CREDENTIALS}@127.0.0.1:{mlflow}",
        }  # fmt: skip
        yield Place(root, {**environment, **MLFLOW_PATIENCE, **secrets})


def hostile_rows(document: dict[str, Any], path: Path) -> None:
    """A file of rationales, two of three right, with a hostile text in each."""
    asked = document["problems"]
    with path.open("w") as file:
        for index, problem in enumerate(draw_problems("sums", "train", asked["num_problems"], asked["seed"])):
            text = HOSTILE[index % len(HOSTILE)]
            right = style_of(problem.question, "running-total").replace("</think>", f"{text}</think>")
            rationale = right if index % 3 else f"<think>{text}</think>\\boxed{{{text}}}"
            file.write(json.dumps({"question": problem.question, "rationale": rationale}) + "\n")


def document(models: Path, url: str, rows: Path) -> dict[str, Any]:
    """The pico experiment without training: teachers behind an endpoint and from a file, students that answer hostile texts."""
    found = pico_document(models)
    hostile_rows(found, rows)
    endpoint = {"base_url": url, "api_key_env": "PROVIDER", "max_retries": 0}
    found["teachers"] = [
        {"name": "served", "model": "tiny", "completer": "openai", "endpoint": endpoint},
        {"name": "rows", "model": "r1", "completer": "corpus", "rationales": {"file": str(rows)}},
    ]
    found["corpus"]["match_over"] = ["served"]
    found["methods"], found["rounds"], found["description"] = [{"name": "base"}], 1, "".join(HOSTILE[5:8])
    found["evaluation"]["completer"] = "tests.flows.hostile:Hostile"
    return found


def leaks(place: Place) -> list[str]:
    """Where a canary is, in any encoding: of every file below the root, and of what was printed."""
    forms: dict[bytes, str] = {}
    for canary in ALL:
        for form in (canary, quote(canary), quote(canary, safe="")):
            forms[form.encode()] = canary
        for shift in range(3):
            encoded = base64.b64encode(b"xyz"[:shift] + canary.encode())
            forms[encoded[4 : (shift + len(canary)) * 8 // 6]] = f"{canary} in base64"
    found = [
        f"{path.relative_to(place.root)}: {what}"
        for path in sorted(place.root.rglob("*")) if path.is_file() and not path.is_symlink()
        for form, what in forms.items() if form in path.read_bytes()
    ]  # fmt: skip
    printed = "\n".join(place.printed).encode()
    return found + [f"printed: {what}" for form, what in forms.items() if form in printed]


def test_a_search_finds_what_is_there(tmp_path: Path) -> None:
    place = Place(tmp_path, {}, ["x canary-user-4711 y"])
    (tmp_path / "binary").write_bytes(b"\0\xff" + base64.b64encode(b"u:" + PASSWORD.encode()))
    assert leaks(place) == [f"binary: {PASSWORD} in base64", f"printed: {USER}"]


@pytest.fixture(scope="module")
def finished(place: Place, pico_models: Path) -> Path:
    """The directory of a run that ended well, after others that did not."""
    store, proxy = ["--store", "store"], Proxy()
    with Endpoint(proxy) as endpoint:
        document_one = document(pico_models, endpoint.url, place.root / "rows.jsonl")
        spec = str(write_spec(place.root / "spec.yaml", document_one))
        place.mot("plan", spec, "--steps", *store)
        told = place.mot("run", spec, *store, code=1)
        assert "CompletionError: " in told and "HTTP 401: Authorization: Bearer [hidden]" in told
        place.mot("logs", "pico", "generate", *store)
        proxy.answers = True
        place.mot("run", spec, *store)
    teacher = {"name": "telltale", "model": str(pico_models / "ann"), "completer": "tests.flows.telltale:Telltale"}
    crashing = {**document_one, "teachers": [teacher, *document_one["teachers"]], "corpus": {"num_rationales": 6}}
    told = place.mot("run", str(write_spec(place.root / "crashing.yaml", crashing)), *store, code=1)
    assert "[hidden]" in told and "RuntimeError" in told
    # A tracker that is away: the run ends well, and is pending.
    away = f"http://{CREDENTIALS}@127.0.0.1:9"
    place.mot("run", spec, *store, MLFLOW_TRACKING_URI=away)
    records = (place.root / "store" / "runs").glob("*/tracking.json")
    (pending,) = [path.parent for path in records if b"pending" in path.read_bytes()]
    place.mot("show", pending.name, *store)
    # A Prefect server that is away: the flow cannot start, and what Prefect says of it is printed.
    place.mot("run", spec, *store, code=1, PREFECT_API_URL=f"{away}/api", PREFECT_CLIENT_MAX_RETRIES="0")
    place.mot("doctor", *store, MLFLOW_TRACKING_URI=away, PREFECT_API_URL=f"{away}/api?key={quote(PASSWORD)}")
    return pending


def test_no_secret_is_left_behind(place: Place, finished: Path) -> None:
    assert leaks(place) == []


def test_the_search_has_seen_logs_states_and_runs(place: Place, finished: Path) -> None:
    """So that an empty search is not the search of nothing."""
    stored = b"".join(path.read_bytes() for path in sorted(place.root.glob("prefect.db*")))
    assert b"HTTP 401" in stored and b"mot-experiment" in stored and b"[hidden]" in stored
    assert rows_of(place.root / "mlflow.db", "SELECT value FROM params") and list(
        (place.root / "mlartifacts").rglob("*")
    )
    logs = b"".join(path.read_bytes() for path in (place.root / "store" / "logs").iterdir())
    assert b"[hidden]" in logs and b"Traceback" in logs


def rows_of(database: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [row[0] or "" for row in connection.execute(query)]


def test_logs_hold_the_texts_with_nothing_hidden(place: Place, finished: Path) -> None:
    store = Store(place.root / "store")
    logs = [path.read_bytes().decode() for path in (store.root / "logs").glob("*.log")]
    said = [line for log in logs for line in log.split("\n") if "the model says:" in line]
    assert any("␛[2J␛]0;owned␇" in line for line in said) and any("⟨U+202E⟩reversed" in line for line in said)
    assert not [line for log in logs for line in log.split("\n") if HIDDEN.search(line)]
    for step in read_index(finished)["steps"]:
        assert not [line for line in step_logs(store, finished, step["identity"]) if HIDDEN.search(line)]


def test_prefects_logs_and_artifacts_hold_nothing_hidden(place: Place, finished: Path) -> None:
    messages = rows_of(place.root / "prefect.db", "SELECT message FROM log")
    said = [message for message in messages if "the model says:" in message]
    assert any("␛[2J␛]0;owned␇" in message for message in said)
    assert not [message for message in said if HIDDEN.search(message)]
    artifacts = [json.loads(data) for data in rows_of(place.root / "prefect.db", "SELECT data FROM artifact")]
    assert artifacts and not [data for data in artifacts if HIDDEN.search(str(data)) or "<script" in str(data)]


def test_a_terminal_is_told_nothing_hidden(place: Place, finished: Path) -> None:
    assert not [text for text in place.printed if HIDDEN.search(text)]


def test_tables_hold_no_formula_and_the_tracker_no_control(place: Place, finished: Path) -> None:
    for path in (finished / "tables").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            assert not [cell for row in csv.reader(file) for cell in row if cell.startswith(("=", "@"))]
    for table in ("tags", "params", "experiment_tags"):
        assert not [
            one for one in rows_of(place.root / "mlflow.db", f"SELECT value FROM {table}") if HIDDEN.search(one)
        ]


def test_the_report_is_text(finished: Path) -> None:
    page = (finished / "report.html").read_bytes().decode()
    assert "<script" not in page and "<iframe" not in page and "onerror=alert(1)&gt;" in page
    assert not HIDDEN.search(page)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


@pytest.mark.skipif(not CHROMIUM.is_file(), reason="no Chromium here")
def test_a_browser_runs_and_fetches_nothing_of_it(finished: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    requested: list[str] = []
    dialogs: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto((finished / "report.html").as_uri())
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = true }")
        page.wait_for_timeout(500)
        title, shown = page.title(), page.inner_text("main")
        elements = page.locator("script, iframe, object, embed, svg, link, form, main a[href^='javascript']").count()
        browser.close()
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == [] and dialogs == []
    assert title == "pico: Merge-of-Thought report" and elements == 0
    assert "<script>fetch(" in shown and "␛[2J␛]0;owned␇" in shown
