"""A real run computed in the test's own process: every step, without an orchestrator and without workers."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest

from flows.index import index_of
from flows.run import finish, outline_of
from mot_core.artifacts import Store
from mot_core.prepare import world_of
from mot_core.runner import ModelCache, RunSettings, run_step
from mot_core.runs import new_run_dir, write_index
from mot_core.spec import Experiment
from mot_core.spec_files import spec_to_yaml
from mot_core.steps import RemoteStep
from mot_core.workers.pool import WorkerPool
from tasks.invocation import Invocation
from tests.pico import pico_document, pico_experiment


def computed_run(root: Path, spec: Experiment, tracking_uri: str) -> Path:
    """The directory of one run in a new store, finished with its report and told to a tracker."""
    world = world_of(spec)
    store = Store(root).open()
    outline, steps = outline_of(spec, world)
    run_dir = new_run_dir(store, spec.name, spec.identity)
    (run_dir / "spec.yaml").write_text(spec_to_yaml(spec))
    invocation = Invocation(run_dir.name, store, WorkerPool(store, 1), world)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        models = ModelCache()
        for step in steps:
            run_step(RemoteStep.from_json(step.to_json()), store, RunSettings(), lambda event: None, models)
        invocation.look_up(steps, [])
        for step in steps:
            invocation.obtain([step.identity], lambda step, event: None)
        write_index(run_dir, index_of(spec, world, outline, steps, invocation))
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        finish(spec, outline, invocation, run_dir, time.monotonic())
    return run_dir


def two_tracked_runs(root: Path, models: Path) -> tuple[str, list[Path]]:
    """A new tracker in a directory with two runs that differ by their learning rate, and the runs' directories."""
    uri = f"sqlite:///{root / 'tracker.db'}"
    training = {**pico_document(models)["training"], "learning_rate": 0.01}
    methods = [{"name": name} for name in ("base", "std", "mot")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # where a database that is no store's keeps its artifacts
        return uri, [
            computed_run(root / "store", pico_experiment(models, methods=methods, **changes), uri)
            for changes in ({}, {"training": training})
        ]
