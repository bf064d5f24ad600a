"""Fixtures of tests with a tracker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.runs import two_tracked_runs


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory, pico_models: Path) -> tuple[str, list[Path]]:
    """A tracker with two runs that differ by their learning rate, and the runs' directories."""
    return two_tracked_runs(tmp_path_factory.mktemp("compared"), pico_models)
