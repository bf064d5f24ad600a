"""The records that a tracking plan is made of, and the names and values that every MLflow store takes.

Invariant: a planned run's `content` covers what the experiment's results are and nothing of the invocation (clock,
machine, path, commit, reused or run), so that the same spec run again has equal content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mot_core.identity import canonical_json, fingerprint

PLAN_VERSION = 4  # raised when the same run is to be logged otherwise: what was logged is then replaced
MAX_PARAM_CHARACTERS = 5_900  # MLflow refuses 6,001
MAX_NAME_CHARACTERS = 200  # MLflow's stores agree on 250
# Metrics of the machine that a branch was trained on: logged, and outside of `content`.
MACHINE_METRICS = ("tokens_per_second", "peak_memory_bytes")
Sample = tuple[str, float, int, float]  # name, value, step, time


@dataclass(frozen=True, order=True)
class Input:
    """A corpus or benchmark: `digest` is its step's identity, `context` training or evaluation."""

    context: str
    name: str
    digest: str


@dataclass(frozen=True)
class StudentModel:
    """A merged student, by place and hash; its weights are never uploaded."""

    name: str
    tags: dict[str, str]
    uri: str


@dataclass(frozen=True)
class PlannedRun:
    """One run of the tracker. `metrics` are (name, value, step); `samples`, of the machine, have a time of their own and are
    outside of `content`, as `notes` are, which are tags."""

    key: str
    parent: str | None
    name: str
    tags: dict[str, str]
    notes: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: tuple[tuple[str, float, int], ...] = ()
    inputs: tuple[Input, ...] = ()
    student: StudentModel | None = None
    artifacts: tuple[tuple[Path, str | None], ...] = ()
    table_hashes: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0
    samples: tuple[Sample, ...] = ()

    @cached_property
    def content(self) -> str:
        return fingerprint(
            {
                "version": PLAN_VERSION, "key": self.key, "name": self.name, "tags": self.tags, "params": self.params,
                "metrics": [
                    [name, repr(value), step] for name, value, step in self.metrics if name not in MACHINE_METRICS
                ],
                "inputs": [[one.context, one.name, one.digest] for one in self.inputs],
                "student": {"name": self.student.name, **self.student.tags} if self.student else None,
                "tables": self.table_hashes,
            }
        )  # fmt: skip


def weights_sha256(files: Mapping[str, Mapping[str, Any]], inside: str = "") -> str:
    """The SHA-256 of a published student's weights, by its manifest's files: of several shards, one over their names and hashes.
    `inside` is the student's directory in the step, with its slash."""
    shards = [
        [name.removeprefix(inside), facts["sha256"]]
        for name, facts in sorted(files.items())
        if name.startswith(inside) and "/" not in name.removeprefix(inside) and name.endswith(".safetensors")
    ]
    return str(shards[0][1]) if len(shards) == 1 else fingerprint(shards)


def notes_of(run_id: str, provenance: Mapping[str, Any]) -> dict[str, str]:
    """The tags that say which invocation logged a run, of those that are known."""
    named = {
        "mot.run_id": run_id, "mot.git_commit": provenance.get("commit"), "mot.flow_run_id": provenance.get("flow_run_id"),
    }  # fmt: skip
    return {name: short_text(value) for name, value in named.items() if value}


def metric_name(*parts: str) -> str:
    """A metric's name that every MLflow store takes: `avg@16` is not one."""
    text = "/".join(part for part in re.sub(r"[^\w.\-/ ]", "_", "/".join(parts), flags=re.ASCII).split("/") if part)
    text = "/".join("_" if set(part) == {"."} else part for part in text.split("/"))
    return text if len(text) <= MAX_NAME_CHARACTERS else f"{text[:MAX_NAME_CHARACTERS]}-{fingerprint(text)[:8]}"


def short_text(value: Any, limit: int = 250) -> str:
    """A tag's value: printable, on one line, short."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def param_value(value: Any) -> str:
    text = short_text(value, 10**9) if isinstance(value, str) else canonical_json(value)
    if len(text) <= MAX_PARAM_CHARACTERS:
        return text
    return f"{text[:MAX_PARAM_CHARACTERS]}… [cut: {len(text)} characters; whole in spec.yaml]"


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a JSON mapping; lists stay whole, what is absent is left out."""
    for name, item in value.items():
        if isinstance(item, dict):
            yield from flatten(item, f"{prefix}{name}.")
        elif item is not None:
            yield f"{prefix}{name}", param_value(item)
