"""Reruns: what is published is never computed again, and this process never loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Store
from tests.pico import pico_document
from tests.processes import ROOT, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def small(models: Path, **changes: Any) -> dict[str, Any]:
    document = pico_document(models)
    document["methods"] = [{"name": "mot"}]
    document["evaluation"]["path"]["rounds"] = "last"
    document["evaluation"]["benchmarks"] = document["evaluation"]["benchmarks"][:1]
    return {**document, **changes}


class Driver:
    """Runs specs on one store, each in a process of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment, self.count = folder, environment, 0
        self.store = Store(folder / "store")

    def command(self, document: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        self.count += 1
        spec = write_spec(self.folder / f"spec-{self.count}.yaml", document)
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.drive", str(spec), str(self.store.root)],
            capture_output=True, text=True, cwd=ROOT, env=self.environment, timeout=900,
        )  # fmt: skip

    def run(self, document: dict[str, Any]) -> dict[str, Any]:
        """The run's summary; the process must never have imported torch."""
        done = self.command(document)
        assert done.returncode == 0, done.stderr[-4000:]
        said = json.loads(done.stdout.strip().splitlines()[-1])
        assert said["torch"] is False, "the flow process imported torch"
        summary: dict[str, Any] = json.loads((Path(said["run_dir"]) / "summary.json").read_text())
        return summary

    def started(self) -> dict[str, float]:
        return {manifest.identity: manifest.started for manifest in self.store.manifests()}

    def kinds(self, identities: set[str]) -> set[str]:
        return {manifest.kind for manifest in self.store.manifests() if manifest.identity in identities}


@pytest.fixture
def driver(tmp_path: Path, drive_environment: dict[str, str]) -> Driver:
    return Driver(tmp_path, drive_environment)


def test_reruns_compute_only_what_changed(driver: Driver, pico_models: Path) -> None:
    first = driver.run(small(pico_models))
    before = driver.started()
    assert first["step_counts"] == {"run": len(before), "reused": 0}

    # The same spec: nothing runs, no worker starts, the numbers are the same.
    logs = sorted((driver.store.root / "logs").iterdir())
    again = driver.run(small(pico_models))
    assert again["step_counts"]["run"] == 0 and again["compute_seconds"] == 0.0
    assert driver.started() == before and sorted((driver.store.root / "logs").iterdir()) == logs
    assert {m: b["benchmarks"] for m, b in again["budgets"]["matched_path"].items()} == {
        m: b["benchmarks"] for m, b in first["budgets"]["matched_path"].items()
    }
    assert again["students"] == first["students"]

    # Another k: evaluations only.
    document = small(pico_models)
    document["evaluation"]["benchmarks"][0]["k"] = 1
    asked_less = driver.run(document)
    fresh = set(driver.started()) - set(before)
    assert driver.kinds(fresh) == {"evaluation"}
    assert asked_less["step_counts"]["run"] == len(fresh)

    # Another method in another experiment: it shares the teachers' work.
    before = driver.started()
    driver.run(small(pico_models, name="other", methods=[{"name": "std"}]))
    now = driver.started()
    assert {identity: now[identity] for identity in before} == before
    assert driver.kinds(set(now) - set(before)) == {"branch", "evaluation"}

    # A damaged student is found, redone to the same bytes, and nothing else is.
    merged = next(manifest for manifest in driver.store.manifests() if manifest.kind == "merge")
    weights = driver.store.object_dir(merged.identity) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    healed = driver.run(small(pico_models))
    assert healed["step_counts"]["run"] == 1
    after = driver.started()
    assert {identity for identity in now if after[identity] != now[identity]} == {merged.identity}
    assert driver.store.manifest(merged.identity).files == merged.files  # type: ignore[union-attr]


def test_failures_say_what_where_and_leave_what_was_published(driver: Driver, pico_models: Path) -> None:
    wrong = small(pico_models)
    wrong["teachers"][1]["completer"] = "tests.pico:AlwaysWrong"
    done = driver.command(wrong)
    assert done.returncode != 0
    assert "CorpusError: build corpora: the matched corpora are empty" in done.stderr
    assert "bob has a correct and usable rationale: −" in done.stderr
    assert driver.kinds(set(driver.started())) == {"problems", "overlap", "completions", "verdicts"}

    failing = small(pico_models)
    failing["teachers"][1]["completer"] = "tests.pico:Failing"
    done = driver.command(failing)
    assert done.returncode != 0
    assert "CompletionError: generate bob: 8 of 8 requests failed so far, more than the spec allows" in done.stderr
    assert "the first reason: 'connection refused'" in done.stderr
