"""What has to be known before the graph can be: which training problems a benchmark of the spec holds.

Problems are drawn and compared here, in this process and within seconds, before any compute is claimed: from the store
where they are published, else anew. Invariant: with `publish` off nothing is written (planning looks, it does not do).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace

from mot_core.artifacts import Published, Store
from mot_core.dag import overlap_step
from mot_core.files import read_jsonl
from mot_core.overlap import HITS
from mot_core.runner import ModelCache, RunSettings, run_step
from mot_core.spec import Experiment
from mot_core.steps import RemoteStep, Step, walk
from mot_core.world import World, resolve


def prepare(spec: Experiment, world: World, store: Store | None, *, publish: bool) -> tuple[World, list[Published]]:
    """The world with what is to be removed, and the records of the steps that were published on the way.

    Raises:
        MotError: problems that cannot be drawn; a hit, where the spec says that one stops the run.
    """
    overlap = overlap_step(spec, world)
    found = store.find(overlap.identity) if store is not None else None
    if found is not None:
        return _settled(world, found), []
    with store_or_temporary(store if publish else None) as place:
        records = []
        for step in walk([overlap]):
            known = store.find(step.identity) if store is not None and place is not store else None
            if known is not None:
                shutil.copytree(known.path, place.object_dir(step.identity))
            records.append(run_here(step, place))
        return _settled(world, records[-1]), records if publish else []


def world_of(spec: Experiment, store: Store | None = None) -> World:
    """The outside inputs of an experiment, with what is to be removed; nothing is written."""
    return prepare(spec, resolve(spec), store, publish=False)[0]


@contextlib.contextmanager
def store_or_temporary(store: Store | None) -> Iterator[Store]:
    """The store, or one that goes away."""
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="mot-plan-") as directory:
        yield Store(directory).open()


def run_here(step: Step, store: Store) -> Published:
    """A step computed in this process, for what takes seconds."""
    remote = RemoteStep.from_json(step.to_json())
    return run_step(remote, store, RunSettings(), lambda event: None, ModelCache())


def _settled(world: World, overlap: Published) -> World:
    return replace(world, removed=tuple(row["problem_id"] for row in read_jsonl(overlap.path / HITS)))
