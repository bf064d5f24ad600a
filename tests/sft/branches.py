"""A branch on hand-made corpora, with any setting: what the tests of branch training share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mot_core.artifacts import Published, Store
from mot_core.corpus.tables import write_corpus
from mot_core.runner import RunSettings
from mot_core.spec import Training
from mot_core.steps import Step
from tests.contexts import publish, run
from tests.pico import example_row

QUESTIONS = ["12+34-5", "50+41+3", "2*31+7-11", "99-9+10-20", "11+22+33+44", "75-25", "10+9", "3*11+4", "61-2*15"]
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-2, "batch_size": 2, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.01,
    "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0, "max_example_tokens": 192,
}  # fmt: skip


def corpora(store: Store) -> Step:
    """The corpora `ann` and `bob` of the questions above, published."""

    def write(to: Path) -> None:
        write_corpus(to / "ann.parquet", [example_row(question) for question in QUESTIONS])
        write_corpus(to / "bob.parquet", [example_row(question, "bob", "tens-and-ones") for question in QUESTIONS])

    return publish(store, Step("corpora", {}), write)


def branch_step_of(
    store: Store, *, num_steps: int = 6, names: Sequence[str] = ("ann",), snapshot_steps: Sequence[int] = (),
    extra: dict[str, Any] | None = None, parents: Sequence[tuple[str, Step]] = (), **training: Any,
) -> Step:  # fmt: skip
    """The step of a branch, with `training` over the settings above."""
    settings = Training.model_validate({**TRAINING, **training})
    spec = {
        "student": "s", "corpora": list(names), "training": settings.record(), "order_seed": 5, "first_step": 0,
        "num_steps": num_steps, "total_steps": 6, "snapshot_steps": list(snapshot_steps), **(extra or {}),
    }  # fmt: skip
    return Step("branch", spec, (("corpora", corpora(store)), *parents), locators={"layout": settings.layout_record()})


def branch(
    store: Store, student: Path, *, settings: RunSettings | None = None, events: list[dict[str, Any]] | None = None,
    **wanted: Any,
) -> Published:  # fmt: skip
    """That step, trained."""
    step = branch_step_of(store, **wanted)
    locators = {**step.locators, "student": str(student), "student_revision": None}
    return run(
        store, "branch", step.spec, step.parents, locators, settings or RunSettings(1, checkpoint_seconds=1e9), events
    )


def log_of(made: Published) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.path / "training.jsonl").read_text().splitlines()]
