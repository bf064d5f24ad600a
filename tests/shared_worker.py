"""A worker on a machine of its own, played by a process: `python -m tests.shared_worker '{"store": …}'`.

Its machine's name and its clock are made up, so that it knows of other workers what a worker of another machine would.
It computes steps in turn; on the way it can stand still, alive, until a file appears. A JSON line a step tells how.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mot_core.processes
from mot_core.artifacts import Published, Store
from mot_core.runner import RunSettings
from mot_core.steps import Step


def main() -> None:
    wanted = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    mot_core.processes._machine = lambda: str(wanted["machine"])
    real = time.time
    time.time = lambda: real() + wanted["clock"]
    run: Callable[[dict[str, Any], Store, str], Published] = {"branch": train, "text": write}[wanted["kind"]]
    for name in wanted["steps"]:
        made = run(wanted, Store(wanted["store"]), name)
        print(json.dumps({"step": name, "reused": made.reused, "counts": made.counts}), flush=True)


def stand_still(wanted: dict[str, Any]) -> None:
    """Until the file appears that is waited for, if there is one."""
    Path(wanted["at"]).touch()
    while not Path(wanted["until"]).exists():
        time.sleep(0.02)


def write(wanted: dict[str, Any], store: Store, name: str) -> Published:
    """A step that writes its name; who computed it is on record."""

    def compute(work_dir: Path) -> dict[str, Any]:
        (work_dir / "name.txt").write_text(name)
        with Path(wanted["computed"]).open("a") as file:
            file.write(f"{wanted['machine']} {name}\n")
        if "at" in wanted:
            stand_still(wanted)
        return {"num_characters": len(name)}

    return store.obtain(Step("problems", {"name": name}, label=name), compute)


def train(wanted: dict[str, Any], store: Store, name: str) -> Published:
    """A branch with a checkpoint after each step; it stands still after the third."""
    from mot_core.sft.checkpoints import Checkpoints
    from tests.sft.branches import branch

    save = Checkpoints.save

    def save_and_stand_still(self: Checkpoints, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        with Path(wanted["computed"]).open("a") as file:
            file.write(f"{wanted['machine']} {step}\n")
        if step == 3 and "at" in wanted:
            stand_still(wanted)

    Checkpoints.save = save_and_stand_still  # type: ignore[method-assign]
    return branch(store, Path(name), settings=RunSettings(1, checkpoint_seconds=0.0))


if __name__ == "__main__":
    main()
