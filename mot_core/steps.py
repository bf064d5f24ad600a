"""Steps: the nodes of the experiment's DAG, known before anything runs.

A step is a value: its identity follows from its kind, spec and parents alone, so the whole DAG can be drawn,
costed and looked up in a store without computing anything. What a step does is named by its kind's runner.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mot_core.errors import SpecError
from mot_core.identity import ALGORITHM_VERSIONS, step_identity

if TYPE_CHECKING:
    from mot_core.runner import StepContext

RUNNERS: dict[str, str] = {
    "problems": "mot_core.stages:draw_problems",
    "overlap": "mot_core.overlap:find_overlap",
    "training-problems": "mot_core.overlap:keep_rest",
    "completions": "mot_core.completers.stage:complete",
    "verdicts": "mot_core.grading.stage:grade",
    "judgements": "mot_core.grading.judge_stage:judge",
    "corpora": "mot_core.corpus.stage:build_corpora",
    "shuffled-corpora": "mot_core.corpus.shuffled:build_shuffled_corpora",
    "branch": "mot_core.sft.branch:train_branch",
    "on-policy": "mot_core.sft.on_policy:train_on_policy",
    "merge": "mot_core.merging.stage:merge_branches",
    "evaluation": "mot_core.evaluation.stage:evaluate_student",
    "harness": "mot_core.evaluation.harness:run_harness",
    "confidence": "mot_core.probes.confidence:measure_confidence",
    "landscape": "mot_core.probes.landscape:measure_landscape",
}
SHARD_RUNNERS: dict[str, str] = {"completions": "mot_core.completers.stage:complete_shard"}
"""Of kinds whose work several jobs can do parts of before the step is computed: `runner(context, (index, count))`."""


@dataclass(frozen=True)
class ModelRef:
    """A model that no step made: its identity is its content (or hub id and revision), its place a locator."""

    identity: str
    locator: str
    revision: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"identity": self.identity, "locator": self.locator, "revision": self.revision}


@dataclass(frozen=True, eq=False)
class Step:
    """One node. `spec` changes the result; `label`, `facts` and `locators` do not and stay out of identity.

    `facts` place the step in the experiment for people and tables (method, seed, round, teacher, …);
    `locators` say where outside inputs lie on this machine.
    """

    kind: str
    spec: Mapping[str, Any]
    parents: tuple[tuple[str, Step], ...] = ()
    label: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    locators: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        return step_identity(self.kind, self.spec, [(role, parent.identity) for role, parent in self.parents])

    @property
    def version(self) -> int:
        return ALGORITHM_VERSIONS[self.kind]

    def parent_identities(self) -> list[list[str]]:
        return [[role, parent.identity] for role, parent in self.parents]

    def parent(self, role: str) -> Step:
        """The parent in a role."""
        for name, step in self.parents:
            if name == role:
                return step
        raise KeyError(f"{self.kind} has no parent {role!r}; its roles: {[name for name, _ in self.parents]}")

    def to_json(self) -> dict[str, Any]:
        """What a worker needs: parents as steps without their own parents (only their identity matters there)."""
        return {
            "kind": self.kind,
            "spec": dict(self.spec),
            "parents": [[role, step.kind, step.identity] for role, step in self.parents],
            "label": self.label,
            "facts": dict(self.facts),
            "locators": dict(self.locators),
            "identity": self.identity,
        }


@dataclass(frozen=True, eq=False)
class RemoteStep(Step):
    """A step as a worker sees it: parents by identity only."""

    parent_records: tuple[tuple[str, str, str], ...] = ()
    known_identity: str = ""

    @cached_property
    def identity(self) -> str:
        return self.known_identity

    def parent_identities(self) -> list[list[str]]:
        return [[role, identity] for role, _, identity in self.parent_records]

    def to_json(self) -> dict[str, Any]:
        """As it came: a cluster's task hands it on to a worker of its node."""
        return {**super().to_json(), "parents": [list(record) for record in self.parent_records]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RemoteStep:
        step = cls(
            kind=document["kind"], spec=document["spec"], label=document["label"], facts=document["facts"],
            locators=document["locators"], parent_records=tuple(tuple(item) for item in document["parents"]),
            known_identity=document["identity"],
        )  # fmt: skip
        expected = step_identity(step.kind, step.spec, [(role, identity) for role, _, identity in step.parent_records])
        assert expected == step.identity, f"{step.kind}: identity changed on its way to the worker"
        return step


def walk(steps: list[Step]) -> Iterator[Step]:
    """Every step that `steps` need, parents first, each once."""
    seen: set[str] = set()
    stack: list[tuple[Step, bool]] = [(step, False) for step in reversed(steps)]
    while stack:
        step, expanded = stack.pop()
        if step.identity in seen:
            continue
        if expanded:
            seen.add(step.identity)
            yield step
        else:
            stack.append((step, True))
            stack.extend((parent, False) for _, parent in reversed(step.parents))


def load_object(import_path: str, what: str) -> Any:
    """The object at `package.module:attribute`; the working directory counts as importable.

    Raises:
        SpecError: a path that does not parse, import or resolve.
    """
    module_name, separator, attribute = import_path.partition(":")
    if not separator:
        raise SpecError(f"{what}: {import_path!r} is not known here and no import path; expected package.module:name")
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.append(cwd)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"{what}: cannot import {import_path!r}: {error}") from error


def check_import_path(import_path: str, what: str) -> None:
    """Raise `SpecError` unless a module with such a top-level name exists; the module is read, not imported, since
    what workers need (torch) must stay out of the flow's process."""
    module_name, _, attribute = import_path.partition(":")
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.append(cwd)
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise SpecError(f"{what}: cannot find the module of {import_path!r}: {error}") from error
    if found is None:
        raise SpecError(f"{what}: there is no module {module_name!r} for {import_path!r}, on sys.path or in {cwd}")
    if found.origin is None or not found.origin.endswith(".py"):
        return
    names: set[str] = set()
    for node in ast.parse(Path(found.origin).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    if attribute not in names and "*" not in names:
        raise SpecError(f"{what}: module {module_name!r} has no top-level {attribute!r}; it has {sorted(names)[:8]}")


def can_be_sharded(step: Step) -> bool:
    """Whether several jobs help a step. An endpoint serves as many requests at once from one job, under one budget."""
    return step.kind in SHARD_RUNNERS and step.spec["completer"] not in ("openai", "corpus")


def runner_of(kind: str) -> Callable[[StepContext], dict[str, Any]]:
    """The function that computes steps of a kind."""
    runner: Callable[[StepContext], dict[str, Any]] = load_object(RUNNERS[kind], f"runner of {kind}")
    return runner
