"""Fixtures of tests with a tracker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pico import pico_document, pico_experiment
from tests.tasks.runs import computed_run


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory, pico_models: Path) -> tuple[str, list[Path]]:
    """A tracker with two runs that differ by their learning rate, and the runs' directories."""
    root = tmp_path_factory.mktemp("compared")
    uri = f"sqlite:///{root / 'tracker.db'}"
    training = {**pico_document(pico_models)["training"], "learning_rate": 0.01}
    methods = [{"name": name} for name in ("base", "std", "mot")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # where a database that is no store's keeps its artifacts
        return uri, [
            computed_run(root / "store", pico_experiment(pico_models, methods=methods, **changes), uri)
            for changes in ({}, {"training": training})
        ]
