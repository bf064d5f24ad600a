"""Nights end to end with real runs: killed and gone on, nothing new, a tampered golden, made way for, short of budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from mot_core.artifacts import Store
from tests.pico import pico_document
from tests.processes import ROOT, wait_until, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SCENES = ("plain", "at_once", "busy", "tampered", "yielding", "later", "poor")
NIGHTS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")


def write_nightly(folder: Path, models: Path) -> Path:
    """Two cells of the pico experiment, an undecided one gets a second seed; its canary is the same, smaller."""
    document = pico_document(models)
    document["methods"] = [{"name": "base"}, {"name": "mot"}]
    document["evaluation"]["path"] = {"rounds": "last", "num_problems": 4, "k": 1}
    document["evaluation"]["benchmarks"] = document["evaluation"]["benchmarks"][:1]
    base = str(write_spec(folder / "pico.yaml", document))
    nightly = {
        "name": "pico", "base": base, "grid": {"merge.rule": ["mean", "ties"]}, "max_seeds": 2, "budget": {"minutes": 60},
        "reference": {"method": "mot", "against": ["base"]},
        "canary": {"base": base, "set": ["methods=[{name: mot}]", "rounds=1"]},
    }  # fmt: skip
    path = folder / "nightly.yaml"
    path.write_text(yaml.safe_dump(nightly))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("nights") / "store")


@pytest.fixture(scope="module")
def told(store: Store, pico_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the driver said, by night. The first night is killed once its first cell is finished and its second has begun."""
    folder = tmp_path_factory.mktemp("nightly")
    file, log = write_nightly(folder, pico_models), folder / "log"
    command = [sys.executable, "-W", "ignore", "-m", "tests.drive_nightly", str(file), str(store.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output, subprocess.Popen([*command, "plain"], stdout=output, stderr=output, cwd=ROOT, env=environment) as killed:  # fmt: skip
        night = store.root / "nightly" / "pico" / "0001" / "night.json"

        def in_the_second() -> bool:
            return night.is_file() and len(json.loads(night.read_text())["visits"]) == 2

        wait_until(lambda: in_the_second() or killed.poll() is not None, 600.0, "the second cell")
        assert killed.poll() is None, log.read_text()[-4000:]
        killed.kill()
    done = subprocess.run([*command, *SCENES], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr[-6000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(line["directory"]).name: line for line in lines}


def digest_of(store: Store, night: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store.root / "nightly" / "pico" / night / "digest.json").read_text())
    return found


def test_each_call_but_the_killed_one_is_a_night(told: dict[str, dict[str, Any]], store: Store) -> None:
    assert tuple(told) == NIGHTS and [one["scene"] for one in told.values()] == list(SCENES)
    assert not any(one["torch"] for one in told.values()), "the flow process imported torch"
    assert not list(store.root.glob("nightly/*/*/canary-store"))
    assert not list((store.root / "locks").glob("run-*.lock"))
    for night in NIGHTS:
        directory = store.root / "nightly" / "pico" / night
        assert {"digest.md", "digest.html", "digest.json"} <= {path.name for path in directory.iterdir()}
        assert json.loads((directory / "tracking.json").read_text())["state"] == "logged"


def test_a_killed_night_goes_on_and_its_digest_is_whole(told: dict[str, dict[str, Any]], store: Store) -> None:
    first = digest_of(store, "0001")
    assert first["state"] == "finished" and first["canary"]["verdict"] == "first"
    visits = [(visit["cell"], visit["state"]) for visit in first["visits"]]
    assert visits[0] == ("merge.rule=mean", "finished") and visits[1][0] == "merge.rule=ties"
    assert Counter(cell for cell, state in visits if state == "finished") == {
        "merge.rule=mean": 2,
        "merge.rule=ties": 2,
    }
    assert first["visits"][0]["why"].startswith("has never run")
    # No step of the main store was computed twice: once a kind and identity, whichever attempt did it.
    assert not set(told["0001"]["computed"]) & before_the_restart(store, first)
    assert all(cell["is_new"] and cell["cause"] == "first results" for cell in first["cells"])
    assert [cell["seeds"] for cell in first["cells"]] == [[1, 2], [1, 2]]
    assert {cell["kind"] for cell in first["cells"]} == {"undecided, no seed left"}
    assert first["spent"]["completion_tokens"] > 0 and first["remaining"] == []


def before_the_restart(store: Store, first: dict[str, Any]) -> set[str]:
    """The steps of the cell that was finished before the kill."""
    run_dir = store.root / "runs" / first["visits"][0]["run_id"]
    return {step["identity"] for step in json.loads((run_dir / "index.json").read_text())["steps"]}


def test_a_night_with_nothing_new_computes_its_canary_alone(told: dict[str, dict[str, Any]], store: Store) -> None:
    again = digest_of(store, "0002")
    assert (again["state"], again["canary"]["verdict"], again["canary"]["since"]) == ("finished", "equal", "0001")
    assert again["visits"] == [] and not any(cell["is_new"] for cell in again["cells"]) and again["regressions"] == []
    published = {manifest.identity for manifest in store.manifests()}
    num_canary = len(json.loads((store.root / "nightly/pico/0002/canary.json").read_text())["steps"])
    assert len(told["0002"]["computed"]) <= num_canary and set(told["0002"]["computed"]) - published


def test_a_night_makes_way_for_a_run_that_is_there(told: dict[str, dict[str, Any]], store: Store) -> None:
    busy = digest_of(store, "0003")
    assert (busy["state"], busy["reason"]) == ("skipped", "run x of ann is active")
    assert busy["canary"]["verdict"] == "not computed" and told["0003"]["computed"] == []


def test_a_tampered_golden_is_an_alarm(told: dict[str, dict[str, Any]], store: Store) -> None:
    canary = digest_of(store, "0004")["canary"]
    assert (canary["verdict"], canary["against"], canary["repeats"]) == ("changed", "0002", True)
    assert [one["kind"] for one in canary["changed"]] == ["merge"] and "model.safetensors" in canary["changed"][0][
        "what"
    ]
    assert any(line.startswith("torch 1.0 → ") for line in canary["between"])
    assert digest_of(store, "0006")["canary"]["since"] == "0004"


def test_a_night_that_made_way_goes_on_the_next_one(told: dict[str, dict[str, Any]], store: Store) -> None:
    stopped, after = digest_of(store, "0005"), digest_of(store, "0006")
    assert (stopped["state"], stopped["reason"]) == ("stopped", "run y of bob is active")
    assert [(visit["cell"], visit["state"]) for visit in stopped["visits"]] == [("generation.seed=5", "stopped")]
    assert [row["cell"] for row in stopped["remaining"]] == ["generation.seed=5"]
    assert after["state"] == "finished" and {visit["state"] for visit in after["visits"]} == {"finished"}
    assert [cell["name"] for cell in after["cells"] if cell["is_new"]] == ["generation.seed=5"]
    assert (
        not set(told["0005"]["computed"]) & set(told["0006"]["computed"]) & {one.identity for one in store.manifests()}
    )


def test_what_a_budget_does_not_hold_is_left_and_said(told: dict[str, dict[str, Any]], store: Store) -> None:
    poor = digest_of(store, "0007")
    assert poor["state"] in ("finished", "stopped") and poor["visits"] == []
    (left,) = poor["remaining"]
    assert left["cell"] == "generation.seed=6" and left["fits"] is False and left["tokens"] > 0


def test_nights_are_runs_of_one_experiment_in_the_tracker(told: dict[str, dict[str, Any]], store: Store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nightly")
    runs = {run.data.params["night"]: run.data for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(NIGHTS)
    changed = {night: run.metrics["canary/changed"] for night, run in runs.items()}
    assert changed == {night: float(night == "0004") for night in NIGHTS}
    assert runs["0003"].tags["mot.state"] == "skipped" and runs["0006"].metrics["cells/new"] == 1.0
    assert client.get_experiment_by_name("pico-canary") is None
