"""A night in real processes, with Prefect, workers and MLflow: killed in its middle, it goes on; then a night with nothing new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mot_core.artifacts import Store
from tests.pico import pico_document
from tests.processes import ROOT, wait_until, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]
START_SECONDS = 800.0


def write_nightly(folder: Path, models: Path) -> Path:
    """Two cells of the pico experiment; its canary is smaller."""
    document = pico_document(models)
    document["methods"] = [{"name": "base"}, {"name": "mot"}]
    document["evaluation"]["path"] = {"rounds": "last", "num_problems": 4, "k": 1}
    document["evaluation"]["benchmarks"] = document["evaluation"]["benchmarks"][:1]
    base = str(write_spec(folder / "pico.yaml", document))
    path = folder / "nightly.yaml"
    path.write_text(yaml.safe_dump({
        "name": "pico", "base": base, "grid": {"merge.rule": ["mean", "ties"]}, "max_seeds": 1,
        "reference": {"method": "mot", "against": ["base"]},
        "canary": {"base": base, "set": ["methods=[{name: mot}]", "rounds=1"]},
    }))  # fmt: skip
    return path


def test_a_killed_night_goes_on_and_the_next_has_nothing_to_do(
    pico_models: Path, tmp_path: Path, drive_environment: dict[str, str]
) -> None:
    store, log = Store(tmp_path / "store"), tmp_path / "log"
    file = write_nightly(tmp_path, pico_models)
    command = [sys.executable, "-W", "ignore", "-m", "tests.drive_nightly", str(file), str(store.root)]
    first = store.root / "nightly" / "pico" / "0001"

    def is_in_its_second_cell() -> bool:
        return (first / "night.json").is_file() and len(json.loads((first / "night.json").read_text())["visits"]) == 2

    with log.open("wb") as output:
        killed = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=drive_environment)
    try:
        wait_until(lambda: is_in_its_second_cell() or killed.poll() is not None, START_SECONDS, "the second cell")
        assert killed.poll() is None, log.read_text()[-4000:]
    finally:
        killed.kill()
        killed.wait()
    before = {manifest.identity: manifest.started for manifest in store.manifests()}
    canary = (first / "canary.json").read_bytes()

    told = night(command, drive_environment)
    digest = json.loads((first / "digest.json").read_text())
    assert (told["directory"], told["state"]) == (str(first), "finished")
    assert [(visit["cell"], visit["state"]) for visit in digest["visits"]] == [
        ("merge.rule=mean", "finished"), ("merge.rule=ties", "killed"), ("merge.rule=ties", "finished"),
    ]  # fmt: skip
    assert [(cell["is_new"], cell["kind"]) for cell in digest["cells"]] == [(True, "undecided, no seed left")] * 2
    assert (first / "canary.json").read_bytes() == canary, "the canary was computed again"
    after = {manifest.identity: manifest.started for manifest in store.manifests()}
    assert {identity: after[identity] for identity in before} == before, "a published step ran again"
    assert not list((store.root / "locks").glob(f"run-*.{os.getpid()}.lock"))

    told = night(command, drive_environment)
    second = json.loads((Path(told["directory"]) / "digest.json").read_text())
    assert second["night"] == "0002" and second["canary"]["verdict"] == "equal" and second["visits"] == []
    print(f"nothing new: {told['seconds']:.1f} s, {second['canary']['seconds']:.1f} s of them the canary")
    assert {manifest.identity: manifest.started for manifest in store.manifests()} == after
    assert not list(store.root.glob("nightly/*/*/canary-store"))


def night(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What a night that ends well says; its process never loads torch."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["torch"] is False, "the flow process imported torch"
    return said
