"""A step's runner called on hand-made parents: what a worker does, without a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mot_core.artifacts import Published, Store
from mot_core.runner import ModelCache, RunSettings, run_step
from mot_core.steps import RemoteStep, Step

SETTINGS = RunSettings(threads=1, checkpoint_seconds=1e9)


def publish(store: Store, step: Step, write: Callable[[Path], Any]) -> Step:
    """Publish a parent whose files a test writes."""

    def compute(work_dir: Path) -> dict[str, Any]:
        write(work_dir)
        return {}

    store.obtain(step, compute)
    return step


def run(
    store: Store, kind: str, spec: Mapping[str, Any], parents: tuple[tuple[str, Step], ...] = (),
    locators: Mapping[str, Any] | None = None, settings: RunSettings = SETTINGS,
    events: list[dict[str, Any]] | None = None,
) -> Published:  # fmt: skip
    """The step computed in this process."""
    step = Step(kind, spec, parents, label=kind, locators=locators or {})
    emit = (events if events is not None else []).append
    models = ModelCache()
    try:
        return run_step(RemoteStep.from_json(step.to_json()), store, settings, emit, models)
    finally:
        models.close()
