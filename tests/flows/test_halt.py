"""A run that is asked to stop does so at the next published step, and the same call ends it with the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.run import RunOptions, run
from mot_core.artifacts import Store
from mot_core.errors import Halted
from mot_core.steps import Step
from tests.pico import pico_experiment

pytestmark = pytest.mark.slow


def hashes(run_dir: Path) -> dict[tuple[str, str], str]:
    students = json.loads((run_dir / "summary.json").read_text())["students"]
    return {(method, seed): row["sha256"] for method, seeds in students.items() for seed, row in seeds.items()}


def test_a_halted_run_goes_on_to_the_same_weights(pico_models: Path, tmp_path: Path) -> None:
    spec = pico_experiment(pico_models, methods=[{"name": "std"}, {"name": "mot"}])
    options = RunOptions(tmp_path / "store", workers=2)
    published: list[str] = []

    def watch(step: Step, event: dict[str, Any]) -> None:
        if event.get("event") == "published":
            published.append(step.kind)
            if step.kind == "branch":
                options.halt.request("a person's run came first")

    with pytest.raises(Halted, match="a person's run came first"):
        run(spec, options, watch)
    done = {manifest.identity for manifest in Store(options.store).manifests()}
    assert "branch" in published and "merge" not in published
    with pytest.raises(Halted):  # asked for before it begins: nothing is started
        run(spec, options)
    assert {manifest.identity for manifest in Store(options.store).manifests()} == done
    halted = run(spec, RunOptions(options.store, workers=2))
    straight = run(spec, replace(RunOptions(), store=tmp_path / "other", workers=2))
    assert json.loads((halted / "summary.json").read_text())["step_counts"]["reused"] == len(done)
    assert hashes(halted) == hashes(straight)
