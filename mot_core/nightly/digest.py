"""A night's digest: what is new since the last one, what fell, what is open, what it cost, and what remains.

Invariant: everything new is told against the digest before, by results' hashes, so it does not matter whether this night, one
that was killed, or a person's run brought it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mot_core.identity import fingerprint
from mot_core.nightly.nights import Night
from mot_core.nightly.order import Standing
from mot_core.nightly.results import Finished, Means, moved, scores_of
from mot_core.nightly.spec import Nightly, Reference

STUCK = ("not planned", "not compared")
"""Kinds of standing that no night changes."""
MeansOf = Callable[[Finished], Means | None]
MeansBefore = Callable[[str], Means | None]


@dataclass(frozen=True)
class Estimate:
    """What a visit is planned to cost: wall seconds, completion tokens."""

    seconds: float
    tokens: int


@dataclass(frozen=True)
class Remaining:
    """A cell that is left for a later night, and whether what this night had left would have held it."""

    standing: Standing
    estimate: Estimate
    fits: bool


def digest_of(
    spec: Nightly, night: Night, state: str, reason: str | None, canary: dict[str, Any], standings: Sequence[Standing],
    remaining: Sequence[Remaining], means_of: MeansOf, means_before: MeansBefore,
) -> dict[str, Any]:  # fmt: skip
    """The digest as JSON. `means_of` gives a finished run's scores by problem, `means_before` those of an earlier result."""
    before = {cell["key"]: cell for cell in (night.last_digest() or {"cells": []})["cells"]}
    cells = [_cell(one, before.get(one.cell.key), spec.reference, means_of, means_before) for one in standings]
    fell = [
        {"cell": cell["name"], "cause": cell["cause"], **row}
        for cell in cells
        for row in cell["moved"]
        if row["high"] < 0
    ]
    return {
        "nightly": spec.name, "identity": spec.identity, "night": night.name, "state": state, "reason": reason,
        "started": night.started, "canary": canary, "visits": night.visits, "cells": cells, "regressions": fell,
        "remaining": [
            {"cell": one.standing.cell.name, "kind": one.standing.kind, "why": one.standing.why, "fits": one.fits,
             **asdict(one.estimate)}
            for one in remaining
        ],
        "spent": {"minutes": night.spent_seconds / 60.0, "completion_tokens": night.spent_tokens},
        "budget": spec.budget.model_dump(mode="json"), "spec": spec.model_dump(mode="json"),
    }  # fmt: skip


def _cell(
    standing: Standing,
    before: dict[str, Any] | None,
    reference: Reference,
    means_of: MeansOf,
    means_before: MeansBefore,
) -> dict[str, Any]:
    finished, spec = standing.finished, standing.cell.spec
    row: dict[str, Any] = {
        "key": standing.cell.key, "name": standing.cell.name, "kind": standing.kind, "why": standing.why,
        "run_id": None, "result": None, "steps": None, "seeds": [], "is_new": False, "cause": None, "margins": [], "scores": [], "moved": [],
    }  # fmt: skip
    if finished is None:
        return row
    home = [one.name for one in spec.evaluation.benchmarks if one.role == "home"]
    row |= {
        "run_id": finished.run_dir.name, "result": finished.result, "seeds": list(finished.seeds),
        "margins": [{**asdict(margin), "reference": reference.method} for margin in standing.margins],
        "scores": scores_of(finished.summary, reference.benchmarks or home), "steps": fingerprint(sorted(finished.steps)),
    }  # fmt: skip
    now = means_of(finished)  # kept whatever it is needed for: a later night compares with it
    if before is not None and before["result"] == finished.result:
        return row
    row |= {"is_new": True, "cause": cause_of(before, row)}
    earlier = means_before(before["result"]) if before is not None and before["result"] else None
    if earlier is not None and now is not None:
        row["moved"] = [asdict(one) for one in moved(earlier, now, spec.evaluation.ci_resamples)]
    return row


def cause_of(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Why a cell has a new result, in a few words."""
    if before is None or before["result"] is None:
        return "first results"
    if before["seeds"] != now["seeds"]:
        return f"training seeds {_listed(before['seeds'])} → {_listed(now['seeds'])}"
    return f"run again with {'other code' if before['steps'] != now['steps'] else 'other results'}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def new_cells(digest: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells with a result that the digest before did not have."""
    return [cell for cell in digest["cells"] if cell["is_new"]]


def open_cells(digest: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells in which an interval still holds 0."""
    return [cell for cell in digest["cells"] if any(row["low"] <= 0 <= row["high"] for row in cell["margins"])]


def metrics_of(digest: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The digest in numbers, as a tracker draws them night by night."""
    canary = digest["canary"]
    states = [visit["state"] for visit in digest["visits"]]
    yield "canary/changed", float(canary["verdict"] == "changed")
    yield "canary/failed", float(canary["verdict"] == "failed")
    yield "canary/steps_changed", float(len(canary.get("changed", ())))
    yield "canary/scores_beyond_interval", float(len(canary.get("beyond", ())))
    yield "cells/all", float(len(digest["cells"]))
    yield "cells/new", float(len(new_cells(digest)))
    yield "cells/undecided", float(len(open_cells(digest)))
    yield "cells/stuck", float(sum(cell["kind"] in STUCK for cell in digest["cells"]))
    yield "cells/remaining", float(len(digest["remaining"]))
    yield "visits/finished", float(states.count("finished"))
    yield "visits/failed", float(states.count("failed"))
    yield "regressions", float(len(digest["regressions"]))
    yield "stopped", float(digest["state"] == "stopped")
    yield "skipped", float(digest["state"] == "skipped")
    yield "minutes", float(digest["spent"]["minutes"])
    yield "completion_tokens", float(digest["spent"]["completion_tokens"])
