"""Run one step in this process: look it up, compute it under its lock, publish it.

Workers call `run_step`; so may a notebook. Nothing here knows how processes are arranged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.artifacts import Published, Store
from mot_core.steps import SHARD_RUNNERS, RemoteStep, load_object, runner_of
from mot_core.usage import watched

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunSettings:
    """How, never what: settings of an invocation that change no result."""

    threads: int = 1
    checkpoint_seconds: float = 60.0
    devices: tuple[str, ...] = ()
    """The job's GPUs, named as in CUDA_VISIBLE_DEVICES, which is set to them: the process sees these alone, in this
    order. None: it computes on the CPU."""

    @property
    def device(self) -> str:
        """Where a step that takes one device computes, as torch names it."""
        return device_among(self.devices)


def device_among(devices: Sequence[str]) -> str:
    """The first of the devices that a process sees alone, or the CPU, as torch names them."""
    return "cuda:0" if devices else "cpu"


@dataclass
class StepContext:
    """What a runner is given: the step, where to write, its parents' files, and how to tell progress."""

    step: RemoteStep
    store: Store
    settings: RunSettings
    work_dir: Path
    emit: Emit
    models: ModelCache

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.step.spec

    def parent_dir(self, role: str) -> Path:
        """Where the files of the parent in a role lie."""
        for name, _, identity in self.step.parent_records:
            if name == role:
                return self.store.object_dir(identity)
        raise KeyError(f"{self.step.kind} has no parent {role!r}")

    def parents(self, prefix: str) -> list[tuple[str, Path]]:
        """`(role, files)` of every parent whose role starts with a prefix, in the step's order."""
        return [
            (role, self.store.object_dir(identity))
            for role, _, identity in self.step.parent_records
            if role.startswith(prefix)
        ]

    def model_dir(self, role: str) -> str:
        """A model to load: a parent step's files, or the outside model that the step's locators name."""
        if role in self.step.locators:
            locator: str = self.step.locators[role]
            return locator
        path = self.parent_dir(role)
        subdirectory = self.spec.get(f"{role}_subdirectory")
        return str(path / subdirectory if subdirectory else path)

    def progress(self, done: float, total: float, unit: str, **facts: Any) -> None:
        self.emit({"event": "progress", "done": done, "total": total, "unit": unit, **facts})


class ModelCache:
    """The last model or engine that this process loaded, so that one load serves a student's whole panel."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._value: Any = None

    def get(self, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
        if self._key != key:
            self.close()
            self._value = load()
            self._key = key
        return self._value

    def close(self) -> None:
        """Let go of what is held; an engine in a process of its own ends here."""
        held, self._key, self._value = self._value, None, None
        if hasattr(held, "close"):
            held.close()


def run_step(step: RemoteStep, store: Store, settings: RunSettings, emit: Emit, models: ModelCache) -> Published:
    """The published step, computed only if missing."""

    def compute(work_dir: Path) -> dict[str, Any]:
        with watched(store.usage_path(step.identity), settings.devices) as note, computing(emit):

            def tell(event: dict[str, Any]) -> None:
                note(event)
                emit(event)

            return runner_of(step.kind)(StepContext(step, store, settings, work_dir, tell, models))

    return store.obtain(step, compute)


def run_shard(
    step: RemoteStep, shard: tuple[int, int], store: Store, settings: RunSettings, emit: Emit, models: ModelCache
) -> None:
    """One part of a step's work, which the step finds done when it is computed; nothing is published."""
    context = StepContext(step, store, settings, store.work_root / f"{step.identity}.shards", emit, models)
    with computing(emit):
        load_object(SHARD_RUNNERS[step.kind], f"shards of {step.kind}")(context, shard)


@contextlib.contextmanager
def computing(emit: Emit) -> Iterator[None]:
    """Tell that this process computes, for the time in which it does."""
    emit({"event": "computing", "on": True})
    try:
        yield
    finally:
        emit({"event": "computing", "on": False})
