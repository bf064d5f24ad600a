"""Nights of one nightly in a process of their own: `python -m tests.drive_nightly NIGHTLY.yaml STORE SCENE…`.

A scene is a night in some circumstances. Each prints one JSON line: what the night ended with, how long it took, what it
computed, and whether this process ever imported torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.nightly import Concluded, nightly
from flows.run import RunOptions
from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.nightly.nights import night_under_way
from mot_core.nightly.spec import Nightly, load_nightly
from mot_core.steps import Step

POLL_SECONDS = 0.05


def plain(spec: Nightly, store: Path, computed: list[str]) -> Concluded:
    """A night of its own."""
    return nightly(spec, RunOptions(store, 2, 0.0), counting(computed), poll_seconds=POLL_SECONDS)


def busy(spec: Nightly, store: Path, computed: list[str]) -> Concluded:
    """A person's run is there from the beginning."""
    return nightly(spec, RunOptions(store, 2, 0.0), counting(computed), occupied=lambda: "run x of ann is active")


def yielding(spec: Nightly, store: Path, computed: list[str]) -> Concluded:
    """A person's run begins once a branch of a cell is published. The nightly has a further cell."""
    grown = spec.model_copy(update={"cells": (("generation.seed=5",),)})
    seen: list[str] = []

    def occupied() -> str | None:
        return "run y of bob is active" if "branch" in seen else None

    def watch(step: Step, event: dict[str, Any]) -> None:
        counting(computed)(step, event)
        if event.get("event") == "published" and step.label.startswith("generate") and step.spec["seed"] == 5:
            seen.append("branch")
            time.sleep(4 * POLL_SECONDS)  # the poll comes before the next step

    return nightly(grown, RunOptions(store, 1, 0.0), watch, occupied=occupied, poll_seconds=POLL_SECONDS)


def later(spec: Nightly, store: Path, computed: list[str]) -> Concluded:
    """The night after `yielding`."""
    return plain(spec.model_copy(update={"cells": (("generation.seed=5",),)}), store, computed)


def poor(spec: Nightly, store: Path, computed: list[str]) -> Concluded:
    """A night that cannot pay for the cell that it has left."""
    budget = spec.budget.model_copy(update={"max_completion_tokens": 120})
    return plain(spec.model_copy(update={"cells": (("generation.seed=6",),), "budget": budget}), store, computed)


def tampered(spec: Nightly, store: Path, computed: list[str]) -> Concluded:
    """A night whose canary finds another file in the record of the night before."""
    path = max((store / "nightly" / spec.name).glob("*/canary.json"))
    record = json.loads(path.read_text())
    step = next(step for step in record["steps"] if step["kind"] == "merge")
    step["files"]["model.safetensors"] = "0" * 64
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    return plain(spec, store, computed)


def at_once(spec: Nightly, store: Path, computed: list[str]) -> Concluded:
    """A second night while another process would be at this nightly; then one of its own."""
    with night_under_way(Store(store), spec.name):
        try:
            plain(spec, store, computed)
        except StoreError as error:
            assert "is under way" in str(error)
        else:
            raise AssertionError("two nights of one nightly at once")
    return plain(spec, store, computed)


SCENES: dict[str, Callable[[Nightly, Path, list[str]], Concluded]] = {
    one.__name__: one for one in (plain, busy, yielding, later, poor, tampered, at_once)
}


def counting(computed: list[str]) -> Callable[[Step, dict[str, Any]], None]:
    def watch(step: Step, event: dict[str, Any]) -> None:
        if event.get("event") == "published" and not event["record"]["reused"]:
            computed.append(step.identity)

    return watch


def main() -> None:
    spec, store = load_nightly(sys.argv[1]), Path(sys.argv[2])
    for scene in sys.argv[3:]:
        computed: list[str] = []
        clock = time.monotonic()
        done = SCENES[scene](spec, store, computed)
        seconds = time.monotonic() - clock
        said = {"scene": scene, "directory": str(done.directory), "state": done.state, "seconds": seconds}
        print(json.dumps({**said, "computed": computed, "torch": "torch" in sys.modules}), flush=True)


if __name__ == "__main__":
    main()
