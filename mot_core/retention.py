"""Which weights a run keeps, which weights a step reads of its parents, and so what has to be computed.

A spec's `keep` says what of a run's weights stays when things are removed (`mot_core.removal`). Invariant: a step whose
weights were removed is published all the same. It is computed again only where what is gone is read: by a step that has
to be computed itself, or by a run that keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from mot_core.artifacts import Published
from mot_core.steps import Step

Place = tuple[str, str | None]
"""A step's identity, and the directory of it whose weights are meant; None: all of its weights."""
TOP = "."
"""The step's own directory, where a student lies that is no snapshot."""
OPTIMIZER_STATE, RULE_STATE = "optimizer", "rule_state"
"""Where a branch leaves its optimizer's state, a merge its rule's (`mot_core.sft.optimizers`, `mot_core.merging.stage`, which
load torch)."""


def is_weights(name: str) -> bool:
    """Whether a step's file may be removed: weights, optimizer state, a rule's state. All else is small, and read by
    tables, reports and trackers."""
    return name.endswith(".safetensors")


def lies_in(name: str, directory: str | None) -> bool:
    """Whether a step's file is among those of a place's directory."""
    return directory is None or str(PurePosixPath(name).parent) == directory


def kept_places(
    keep: str, steps: Collection[str], merges: Iterable[str], finals: Iterable[tuple[str, str | None]]
) -> set[Place]:
    """What a run's policy keeps: everything, or its final students, and with `merged` every round's merge (whole, with
    its rule's state, so that a path can go on from any of them)."""
    if keep == "all":
        return {(identity, None) for identity in steps}
    places: set[Place] = {(identity, inside or TOP) for identity, inside in finals if identity in steps}
    if keep == "merged":
        places |= {(identity, None) for identity in merges}
    return places


def weights_read(step: Step, role: str) -> str | None:
    """The directory whose weights a step reads of its parent in a role (as its runner does, by `StepContext`); None: any,
    which costs nothing of parents without weights."""
    if role == "student" or role.startswith("to/"):
        return str(step.spec.get(f"{role}_subdirectory") or TOP)
    if role.startswith("branch/"):
        return TOP
    if role.startswith("optimizer/"):
        return OPTIMIZER_STATE
    return RULE_STATE if role == "previous" else None


def to_compute(
    steps: Sequence[Step], found: Mapping[str, Published | None], kept: Iterable[Place] = ()
) -> dict[str, str]:
    """The steps that have to be computed, and why; `steps` stand parents first, `kept` is what the run itself wants."""
    wanted: dict[str, list[tuple[str | None, str]]] = {}
    for identity, directory in kept:
        wanted.setdefault(identity, []).append((directory, "the spec keeps them (keep)"))
    reasons: dict[str, str] = {}
    for step in reversed(steps):
        record = found.get(step.identity)
        if record is None:
            reason: str | None = "not published"
        else:
            asked = wanted.get(step.identity, ())
            reason = next((why for directory, why in asked if lacks(record, directory)), None)
        if reason is not None:
            reasons[step.identity] = reason
            for role, parent in step.parents:
                needs = (weights_read(step, role), f"{step.label or step.kind} reads them")
                wanted.setdefault(parent.identity, []).append(needs)
    return reasons


def lacks(record: Published, directory: str | None) -> bool:
    """Whether weights of a directory of a published step were removed."""
    return any(lies_in(name, directory) for name in record.removed)
