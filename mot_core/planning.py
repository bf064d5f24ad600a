"""The DAG before anything runs: for each step run or reuse, and why; what it will cost, by stage.

Invariant: nothing is computed and no model is loaded; sizes come from configs and safetensors headers, rates
from what this store has measured (or, in an empty store, from the figures in docs/performance.md).
Longer than most: the costs of every kind of step stand side by side.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mot_core.architectures import active_share, architecture_of
from mot_core.artifacts import Manifest, Published, Store, find_all
from mot_core.errors import ModelError
from mot_core.retention import Place, to_compute
from mot_core.sft.memory import Pass, memory_of, on_policy_memory, teacher_value_bytes
from mot_core.spec import Experiment, Training
from mot_core.steps import Step
from mot_core.world import World

STAGES = ("problems", "generation", "verification", "corpora", "training", "merging", "evaluation")

# Medians over the steps of `mot run lab` (docs/performance.md); FLOP/s of one worker with one thread.
DEFAULT_TRAINING_FLOPS = 5.1e10
DEFAULT_INFERENCE_FLOPS = 1.6e10
BYTES_PER_ROW = 400
EXPECTED_SHARE_OF_LIMIT = 0.6
PROMPT_TOKENS = 24


@dataclass(frozen=True)
class PlannedStep:
    """One step: `action` is 'run' or 'reuse', `reason` says why."""

    step: Step
    action: str
    reason: str
    tokens: int
    flops: float
    memory_bytes: int
    disk_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Every step, parents first, with the number of workers that its times assume."""

    steps: list[PlannedStep]
    workers: int

    def by_stage(self) -> list[dict[str, Any]]:
        """A row a stage: steps to run and to reuse, and the costs of those to run; hours are wall time."""
        rows = []
        for stage in STAGES:
            own = [planned for planned in self.steps if planned.step.facts.get("stage") == stage]
            todo = [planned for planned in own if planned.action == "run"]
            rows.append(
                {
                    "stage": stage, "run": len(todo), "reuse": len(own) - len(todo),
                    "tokens": sum(planned.tokens for planned in todo),
                    "flops": sum(planned.flops for planned in todo),
                    "peak_memory_bytes": max((planned.memory_bytes for planned in todo), default=0) * self.workers,
                    "disk_bytes": sum(planned.disk_bytes for planned in todo),
                    "seconds": sum(planned.seconds for planned in todo) / self.workers,
                }
            )  # fmt: skip
        return rows


def plan(
    spec: Experiment, world: World, steps: list[Step], store: Store | None, workers: int, kept: Iterable[Place] = ()
) -> Plan:  # fmt: skip
    """The plan of an experiment's steps against a store (None: an empty one); `kept` are the weights that it keeps."""
    manifests = list(store.manifests()) if store is not None else []
    found = find_all(store, [step.identity for step in steps]) if store is not None else {}
    by_kind: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        by_kind.setdefault(manifest.kind, []).append(manifest)
    missing = to_compute(steps, found, kept)
    costs = Costs(spec, world, manifests)
    planned = []
    for step in steps:
        record = found.get(step.identity)
        action = "run" if step.identity in missing else "reuse"
        if record is None:
            reason = _reason(step, by_kind.get(step.kind, []), missing)
        elif action == "run":
            reason = f"its weights were removed by mot gc, and {missing[step.identity]}"
        else:
            reason = _published(record)
        planned.append(PlannedStep(step, action, reason, *costs.of(step)))
    return Plan(planned, workers)


def _published(record: Published) -> str:
    return f"published as {record.identity[:12]}"


def _reason(step: Step, candidates: list[Manifest], missing: Collection[str]) -> str:
    """Why a step is not published: how it differs from the nearest one of its kind that is."""
    if not candidates:
        return f"no step of kind {step.kind} is published yet"
    if any(manifest.identity == step.identity for manifest in candidates):
        return "published, but its files are damaged"
    own = _flat(step.spec)
    parents = dict(step.parents)

    def differences(manifest: Manifest) -> tuple[list[str], list[str]]:
        other = _flat(manifest.spec)
        fields = [
            f"{key}: {other.get(key, 'absent')!r} → {own.get(key, 'absent')!r}"
            for key in sorted(set(own) | set(other))
            if own.get(key) != other.get(key)
        ]
        theirs = {parent[0]: parent[1] for parent in manifest.parents}
        roles = [role for role in sorted(set(parents) | set(theirs)) if theirs.get(role) != _id(parents.get(role))]
        return fields, roles

    nearest = min(candidates, key=lambda manifest: tuple(len(part) for part in differences(manifest)))
    fields, roles = differences(nearest)
    if nearest.version != step.version:
        return f"algorithm version of {step.kind}: {nearest.version} → {step.version}"
    if fields:
        return "; ".join(fields[:3]) + (f" and {len(fields) - 3} more" if len(fields) > 3 else "")
    runs = [role for role in roles if role in parents and parents[role].identity in missing]
    if runs:
        return f"its parent runs anew: {', '.join(f'{role} ({parents[role].label})' for role in runs[:2])}"
    return f"its parents differ: {', '.join(roles[:3])}"


def _id(step: Step | None) -> str | None:
    return step.identity if step is not None else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
        return flat
    return {prefix: list(value) if isinstance(value, tuple) else value}


class Costs:
    """Tokens, FLOPs, memory, disk and seconds of a step, by the formulas in docs/architecture.md."""

    def __init__(self, spec: Experiment, world: World, manifests: Iterable[Manifest]) -> None:
        self.spec = spec
        self.student = ModelSize.of(world.student.locator)
        self.teachers = {ref.identity: ModelSize.of(ref.locator) for ref in world.models.values()}
        manifests = list(manifests)
        self.drawn = {m.identity: m.counts["num_problems"] for m in manifests if m.kind == "problems"}
        self.completion_tokens = _median(
            m.counts["num_tokens"] / max(1, m.counts["num_requests"]) for m in manifests if m.kind == "completions"
        )
        self.published = {m.identity: m for m in manifests}
        self.student_identity = world.student.identity
        # FLOP/s, since a store may hold models of any size.
        self.inference_rate = _median(
            2.0
            * parameters
            * (m.counts["num_tokens"] + m.counts["num_requests"] * PROMPT_TOKENS)
            / (m.ended - m.started)
            for m in manifests
            if m.kind in ("completions", "evaluation") and m.counts.get("num_asked") == m.counts["num_requests"]
            if (parameters := self._asked_parameters(m))
        )
        self.training_rate = _median(
            6.0 * m.counts.get("num_active_parameters", m.counts["num_parameters"]) * m.counts["tokens_per_second"]
            for m in manifests
            if m.kind == "branch" and "num_parameters" in m.counts
        )

    def _asked_parameters(self, manifest: Manifest) -> int:
        """Of the model that a step asked; 0 where this store does not say."""
        if manifest.kind == "completions":
            return self.teachers.get(manifest.spec["teacher"]["model"], UNKNOWN_SIZE).active
        if manifest.spec.get("student") == self.student_identity:
            return self.student.active
        return next((self._trained_parameters(parent[1]) for parent in manifest.parents if parent[0] == "student"), 0)

    def _trained_parameters(self, identity: str) -> int:
        """Of a student in this store: a branch says it, a merge is as large as its branches."""
        made = self.published.get(identity)
        if made is None:
            return 0
        if made.kind in ("branch", "on-policy"):
            return int(made.counts.get("num_active_parameters", made.counts.get("num_parameters", 0)))
        return next(
            (self._trained_parameters(parent[1]) for parent in made.parents if parent[0].startswith("branch/")), 0
        )

    def of(self, step: Step) -> tuple[int, float, int, int, float]:
        """`(tokens, FLOPs, memory in bytes, disk in bytes, seconds)`."""
        if step.kind in ("completions", "evaluation", "judgements"):
            return self._sampling(step)
        if step.kind == "branch":
            return self._training(step)
        if step.kind == "on-policy":
            return self._on_policy(step)
        if step.kind == "merge":
            size, branches = self.student, sum(role.startswith("branch/") for role, _ in step.parents)
            # The bound of docs/merging.md; inputs are mapped and outputs written at their places.
            memory = 4 * size.largest_tensor * (branches + 2)
            return 0, 2.0 * size.parameters * branches, memory, 4 * size.parameters, 0.2
        return 0, 0.0, 0, 50_000, 0.1

    def _sampling(self, step: Step) -> tuple[int, float, int, int, float]:
        asked = step.spec.get("teacher") or step.spec.get("judge")
        size = self.teachers.get(asked["model"], UNKNOWN_SIZE) if asked else self.student
        if step.spec["completer"] in ("openai", "corpus"):  # a server's weights, or rows
            size = UNKNOWN_SIZE
        requests = self._num_problems(step.parent("problems")) * step.spec.get("num_samples", 1)
        limit = step.spec["sampling"]["max_completion_tokens"]
        per_request = min(limit, self.completion_tokens or EXPECTED_SHARE_OF_LIMIT * limit)
        tokens = int(requests * per_request)
        flops = 2.0 * size.active * (tokens + requests * PROMPT_TOKENS)
        batch = min(requests, step.spec["batch_size"])
        memory = 4 * size.parameters + batch * (limit + PROMPT_TOKENS) * size.cache_bytes_per_token
        seconds = flops / (self.inference_rate or DEFAULT_INFERENCE_FLOPS)
        return tokens, flops, memory, requests * BYTES_PER_ROW, seconds

    def _num_problems(self, step: Step) -> int:
        """What a source is asked for; of one that gives all its rows, what it gave before, or nothing known."""
        while step.kind == "training-problems":
            step = step.parent("problems")
        asked: int | None = step.spec["num_problems"]
        return asked or self.drawn.get(step.identity, 0)

    def _training(self, step: Step) -> tuple[int, float, int, int, float]:
        size = self.student
        training = Training.model_validate({**step.spec["training"], **step.locators["layout"]})
        limit = self.spec.generation.sampling.max_completion_tokens
        per_example = PROMPT_TOKENS + (self.completion_tokens or EXPECTED_SHARE_OF_LIMIT * limit)
        tokens = int(step.spec["num_steps"] * training.batch_size * per_example)
        flops = 6.0 * size.active * tokens
        largest = Pass.expected(training, per_example, per_example - PROMPT_TOKENS)
        memory = training.devices * sum(memory_of(size.config, training, largest).values()) if size.config else 0
        kept = 1 + len(step.spec["snapshot_steps"])
        seconds = flops / (self.training_rate or DEFAULT_TRAINING_FLOPS)
        return tokens, flops, memory, kept * 4 * size.parameters, seconds

    def _on_policy(self, step: Step) -> tuple[int, float, int, int, float]:
        """By the formulas in docs/on-policy.md."""
        size, teachers = self.student, [self.teachers.get(one, UNKNOWN_SIZE) for one in step.spec["teachers"]]
        training = Training.model_validate({**step.spec["training"], **step.locators["layout"]})
        limit = step.spec["on_policy"]["max_completion_tokens"]
        completion = min(limit, self.completion_tokens or EXPECTED_SHARE_OF_LIMIT * limit)
        tokens = int(step.spec["num_steps"] * training.batch_size * (PROMPT_TOKENS + completion))
        reading = 2.0 * sum(teacher.active for teacher in teachers) * tokens
        sampling, gradients = 2.0 * size.active * tokens, 6.0 * size.active * tokens
        largest = Pass.expected(training, PROMPT_TOKENS + completion, completion)
        memory = teacher_value_bytes(training) * sum(teacher.parameters for teacher in teachers)
        if size.config:
            held = on_policy_memory(
                size.config, training, largest, teacher_bytes=memory,
                num_targets=len(teachers) if step.spec["on_policy"]["target"] == "each" else 1,
                cache_bytes=training.batch_size * (limit + PROMPT_TOKENS) * size.cache_bytes_per_token,
            )  # fmt: skip
            memory = sum(held.values())
        seconds = gradients / (self.training_rate or DEFAULT_TRAINING_FLOPS)
        seconds += (sampling + reading) / (self.inference_rate or DEFAULT_INFERENCE_FLOPS)
        kept = 1 + len(step.spec["snapshot_steps"])
        return tokens, sampling + gradients + reading, memory, kept * 4 * size.parameters, seconds


@dataclass(frozen=True)
class ModelSize:
    """What a model's files say of its size: parameters, the largest tensor, bytes a token in cache; and its config."""

    parameters: int
    largest_tensor: int
    cache_bytes_per_token: int
    config: Mapping[str, Any]

    @property
    def active(self) -> int:
        """The parameters that a token passes through."""
        return round(active_share(self.config) * self.parameters)

    @classmethod
    def of(cls, locator: str) -> ModelSize:
        """From safetensors headers and config.json; of a hub model that is not here, from what is known of it, or zero."""
        directory = Path(locator)
        if not directory.is_dir():
            try:
                known = architecture_of(locator, None, "plan", ask_hub=False)
            except ModelError:
                return UNKNOWN_SIZE
            return cls(known.parameters, known.largest_tensor, 4 * known.cache_values, known.config)
        tensors = [size for path in sorted(directory.glob("*.safetensors")) for size in _tensor_sizes(path)]
        config = json.loads((directory / "config.json").read_text())
        layers, hidden = config["num_hidden_layers"], config["hidden_size"]
        heads = config.get("num_attention_heads", 1)
        head_dim = config.get("head_dim") or hidden // heads
        cache = 2 * layers * config.get("num_key_value_heads", heads) * head_dim * 4
        return cls(sum(tensors), max(tensors), cache, config)


UNKNOWN_SIZE = ModelSize(0, 0, 0, {})


def _tensor_sizes(path: Path) -> list[int]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    sizes = []
    for name, facts in header.items():
        if name != "__metadata__":
            count = 1
            for extent in facts["shape"]:
                count *= extent
            sizes.append(count)
    return sizes


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None
