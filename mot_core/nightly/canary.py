"""The canary: a tiny experiment computed from nothing each night, whose every published file is compared with those before.

Steps are named by what is asked, never by code or libraries, so a change there that moves results leaves names as they are.
The canary sees it: no file of a step differs between two computations on one kind of host (docs/architecture.md).
Invariant: nights are compared only on the same kind of host and with the same canary; elsewhere bits may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.nightly.results import means_of, moved
from mot_core.runs import read_index
from mot_core.spec import Experiment
from mot_core.tables import collect

CANARY = "canary.json"
_ALIKE = ("spec_identity", "host_kind")
_MACHINES = ("branch", "on-policy")
"""Kinds of steps whose counts hold what is the machine's: speed, memory."""


def canary_record(store: Store, run_dir: Path, spec: Experiment, facts: dict[str, Any]) -> dict[str, Any]:
    """What one computation of the canary gave: each step's files by hash, counts, final scores by problem. `facts` are
    `commit`, `versions`, `host_kind` (where bits may be expected to repeat) and `system`."""
    index = read_index(run_dir)
    weights = {
        f"{method}, seed {seed}": row["sha256"]
        for method, seeds in json.loads((run_dir / "summary.json").read_text())["students"].items()
        for seed, row in seeds.items()
    }
    return {
        "spec_identity": spec.identity, "steps": list(_steps(store, index)), "weights": weights,
        "means": means_of(collect(store, run_dir, {}, compare=False)), **facts,
    }  # fmt: skip


def _steps(store: Store, index: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in index["steps"]:
        manifest = store.manifest(row["identity"])
        assert manifest is not None, f"{row['label']} was published a moment ago"
        counts = {} if manifest.kind in _MACHINES else manifest.counts
        yield {
            "label": row["label"], "kind": manifest.kind, "version": manifest.version,
            "files": {name: facts["sha256"] for name, facts in manifest.files.items()},
            "counts": {name: value for name, value in counts.items() if isinstance(value, int)},
        }  # fmt: skip


def judged(tonight: dict[str, Any], before: Iterable[tuple[str, dict[str, Any]]], num_resamples: int) -> dict[str, Any]:
    """The verdict on tonight's canary: 'first', 'equal' or 'changed', against the newest night of its kind. `before` are
    earlier nights' names and records, with their verdicts, the newest first."""
    alike = ((night, one) for night, one in before if all(one.get(name) == tonight[name] for name in _ALIKE))
    night, reference = next(alike, (None, None))
    if night is None or reference is None:
        return {"verdict": "first", "why": "no night before computed this canary on this kind of host", "against": None}
    changed = list(changed_steps(reference, tonight))
    if not changed:
        since = reference.get("verdict", {}).get("since", night)
        return {"verdict": "equal", "why": f"every file is as since night {since}", "against": night, "since": since}
    shifts = moved(reference["means"], tonight["means"], num_resamples)
    beyond = [one for one in shifts if one.is_lower or one.is_higher]
    return {
        "verdict": "changed", "why": _why(changed, tonight), "against": night, "changed": changed,
        "weights": _differing(reference["weights"], tonight["weights"]), "between": between(reference, tonight),
        "num_moved": len(shifts), "beyond": [asdict(one) for one in beyond],
        "largest": asdict(max(shifts, key=lambda one: abs(one.delta))) if shifts else None,
    }  # fmt: skip


def changed_steps(before: dict[str, Any], after: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps whose files differ, parents first: the first one is where a change began."""
    old = {step["label"]: step for step in before["steps"]}
    for step in after["steps"]:
        other = old.pop(step["label"], None)
        if other is None:
            yield {"label": step["label"], "kind": step["kind"], "what": "was not there"}
        elif other["files"] != step["files"]:
            files = _differing(other["files"], step["files"])
            raised = (
                f"algorithm version {other['version']} → {step['version']}; "
                if other["version"] != step["version"]
                else ""
            )
            counts = [f"{n} {other['counts'].get(n, '–')} → {step['counts'].get(n, '–')}" for n in _differing(other["counts"], step["counts"])]  # fmt: skip
            yield {
                "label": step["label"],
                "kind": step["kind"],
                "what": raised + "; ".join([", ".join(files), *counts]),
            }
    for label, step in old.items():
        yield {"label": label, "kind": step["kind"], "what": "is gone"}


def between(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else changed between two records: commit, versions, system, a line each."""
    lines = []
    if before["commit"] != after["commit"]:
        lines.append(f"commit {before['commit'] or 'unknown'} → {after['commit'] or 'unknown'}")
    elif after["commit"] is None or after["commit"].endswith("+"):
        lines.append("the program is no clean checkout: its code may have changed")
    for name in _differing(before["versions"], after["versions"]):
        lines.append(f"{name} {before['versions'].get(name, 'absent')} → {after['versions'].get(name, 'absent')}")
    if before["system"] != after["system"]:
        lines.append(f"system {before['system']} → {after['system']}")
    return lines


def _why(changed: list[dict[str, Any]], tonight: dict[str, Any]) -> str:
    first = changed[0]
    return f"{len(changed)} of {len(tonight['steps'])} steps gave other files, first {first['label']} ({first['what']})"


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
