"""One branch and one merge of a preset's own training settings, and how much memory each took: JSON on stdout.

    python -m tests.drive_memory PRESET:VARIANT STUDENT SMALL STORE OVERRIDE…

SMALL is a model of a small vocabulary. It goes first, so that what is imported on the way is not counted.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.corpus.tables import write_corpus
from mot_core.runner import RunSettings
from mot_core.spec import Training
from mot_core.spec_files import load_spec
from mot_core.steps import Step
from tests.contexts import publish, run
from tests.pico_hub import TRAINED_TOKENS, long_rows
from tests.processes import status_bytes

SETTINGS = RunSettings(threads=1, checkpoint_seconds=1e9)


def branch_of(store: Store, training: Training, order_seed: int) -> Step:
    """A branch of two steps on long examples, its corpus published."""
    corpora = publish(
        store, Step("corpora", {}),
        lambda to: write_corpus(to / "deepseek-r1.parquet", long_rows(training.batch_size)),
    )  # fmt: skip
    spec = {
        "student": "s", "corpora": ["deepseek-r1"], "training": training.record(), "order_seed": order_seed, "first_step": 0,
        "num_steps": 2, "total_steps": 2, "snapshot_steps": [],
    }  # fmt: skip
    return Step("branch", spec, (("corpora", corpora),), label="branch")


def branch_and_merge(store: Store, student: Path, training: Training) -> dict[str, Any]:
    """Two such branches and their mean, with the peak of the first branch and of the merge, in bytes."""
    locators = {"layout": training.layout_record(), "student": str(student), "student_revision": None}
    branches, peaks = {}, list[int]()
    for seed in (1, 2):
        step = branch_of(store, training, seed)
        train = functools.partial(run, store, "branch", step.spec, step.parents, locators, SETTINGS)
        peaks.append(measured(train))
        branches[f"branch/{seed}"] = step
    merge: dict[str, Any] = {"student": "s", "rule": "mean", "weights": [0.5, 0.5]}
    parents = tuple(sorted(branches.items(), key=lambda item: item[1].identity))
    places = {"student": str(student), "student_revision": None}
    merging = measured(functools.partial(run, store, "merge", merge, parents, places, SETTINGS))
    made = {role: str(store.object_dir(step.identity)) for role, step in branches.items()}
    merged = store.object_dir(Step("merge", merge, parents).identity)
    return {"branch": peaks[0], "merge": merging, "branches": list(made.values()), "merged": str(merged)}


def measured(work: Callable[[], Any]) -> int:
    """The most bytes that this process held while it worked, beyond those before."""
    gc.collect()
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    return status_bytes("VmHWM") - before


def main(preset: str, student: str, small: str, root: str, *overrides: str) -> None:
    import torch

    torch.set_num_threads(1)
    training = load_spec(preset, list(overrides)).training
    branch_and_merge(Store(Path(root) / "small").open(), Path(small), training)
    found = branch_and_merge(Store(Path(root) / "large").open(), Path(student), training)
    print(json.dumps({**found, "tokens": training.batch_size * TRAINED_TOKENS}))


if __name__ == "__main__":
    main(*sys.argv[1:])
