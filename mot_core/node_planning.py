"""The plan of an experiment for a node, or for several: memory a GPU, tokens, FLOPs, disk, money and hours by stage, from nothing done.

It is made where neither models, data sets nor keys need to be: `imagined_world` stands for what a run would look up.
Invariant: nothing is drawn, loaded or asked of a server but, at most, a config.json of the hub. Formulas and their
sources are in docs/planning.md.
Longer than most: what a step costs and when it runs are read together, beside that page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mot_core.architectures import Architecture
from mot_core.artifacts import Manifest
from mot_core.fitting import Fitting, Models, Need, published_bytes, weights_and_cache
from mot_core.identity import fingerprint
from mot_core.nodes import Assumptions, Node
from mot_core.planning import STAGES
from mot_core.scheduling import NodeStep, Place, schedule
from mot_core.sft.memory import Pass, memory_of
from mot_core.spec import Engine, Experiment, Model, Teacher, Training
from mot_core.steps import ModelRef, Step
from mot_core.workers.pool import union_seconds
from mot_core.workers.slots import devices_needed
from mot_core.world import JUDGE, UNTRAINED_STUDENT, World

PUBLISHED_ROWS = {
    "math-ai/aime25": 30, "AI-MO/aimo-validation-aime": 90, "HuggingFaceH4/MATH-500": 500, "openai/gsm8k": 1319,
    "lighteval/big_bench_hard": 250, "simplescaling/s1K-1.1": 1000, "Idavidrein/gpqa": 198,
}  # fmt: skip
"""Rows of the split that benchmarks are made of, as the data sets' cards say (of big_bench_hard, in each task; of gpqa, in
gpqa_diamond)."""

ROW_COPIES = 3
"""Of each completion's text on disk: in the journal, in the completions, in the verdicts."""


def imagined_world(spec: Experiment) -> World:
    """What `mot_core.world.resolve` would find, by name alone: for a plan, never for a run, whose identities differ."""

    def stand_in(model: Model) -> ModelRef:
        return ModelRef(fingerprint({"planned": model.model, "revision": model.revision}), model.model, model.revision)

    student = stand_in(spec.student)
    models = {teacher.name: stand_in(teacher) for teacher in spec.teachers}
    if spec.corpus.judge is not None:
        models[JUDGE] = stand_in(spec.corpus.judge)
    models[UNTRAINED_STUDENT] = student
    sources = [spec.problems, *spec.evaluation.benchmarks]
    places = [*(source.file for source in sources), *(entry.include_path for entry in spec.evaluation.harness)]
    files = {place: fingerprint({"planned": place}) for place in places if place is not None}
    return World(student, fingerprint({"planned": spec.student.model}), models, files, removed=())


@dataclass(frozen=True)
class NodePlan:
    """Every step, parents first, when and where it would run, and what each kind of work needs of a GPU."""

    node: Node
    assume: Assumptions
    steps: list[NodeStep]
    places: list[Place] | None
    """Of each step; None where the node's rates are not known, or where a step takes more devices than it has."""
    needs: Mapping[str, Need]
    refusals: list[str]
    notes: list[str]
    urgency: Mapping[str, int]
    student_bytes: float
    """Of one student as training publishes it."""
    num_nodes: int = 1

    @property
    def intervals(self) -> list[tuple[float, float]] | None:
        """Start and end of each step, seconds from the beginning."""
        return [(place.start, place.end) for place in self.places] if self.places is not None else None

    def by_stage(self) -> list[dict[str, Any]]:
        """A row a stage. `seconds`: the time in which at least one of its steps runs; stages overlap."""
        rows = []
        for stage in STAGES:
            own = [index for index, one in enumerate(self.steps) if one.step.facts.get("stage") == stage]
            steps = [self.steps[index] for index in own]
            needs = [need for need in self.needs.values() if need.stage == stage]
            intervals = self.intervals
            rows.append(
                {
                    "stage": stage, "steps": len(own),
                    "gpu_bytes": max((need.total for need in needs), default=0.0),
                    "devices": max((one.devices for one in steps), default=0),
                    "tokens": sum(one.tokens for one in steps), "flops": sum(one.flops for one in steps),
                    "disk_bytes": sum(one.disk_bytes for one in steps),
                    "host_bytes": max((one.host_bytes for one in steps), default=0.0),
                    "gpu_seconds": sum(one.devices * (one.seconds or 0.0) for one in steps)
                    if intervals is not None else None,
                    "seconds": union_seconds([intervals[index] for index in own])
                    if intervals is not None else None,
                    "money": sum(one.money for one in steps if one.money is not None)
                    if any(one.money is not None for one in steps) else None,
                }
            )  # fmt: skip
        return rows

    @property
    def seconds(self) -> float | None:
        """From the first step's start to the last one's end."""
        return max((place.end for place in self.places), default=0.0) if self.places is not None else None


def plan_for_node(
    spec: Experiment, steps: list[Step], node: Node, urgency: Mapping[str, int], *, manifests: Iterable[Manifest] = (),
    assume: Assumptions | None = None, ask_hub: bool = True, num_nodes: int = 1,
) -> NodePlan:  # fmt: skip
    """The plan of an experiment's steps, all of them to be run. `urgency`: of each kind, the lowest first, as at the run;
    `manifests`: of a store, for the numbers of problems that it has drawn; `num_nodes`: how many such nodes there are.

    Raises:
        ModelError: nothing is known of a model.
    """
    assume = assume or Assumptions()
    fitting = Fitting(spec, node, assume, Models(ask_hub))
    costs = NodeCosts(spec, node, assume, fitting, manifests)
    planned = [costs.of(step) for step in steps]
    timed = all(one.seconds is not None and one.devices <= node.count for one in planned)
    places = schedule(planned, node, urgency, num_nodes) if timed else None
    student_bytes = published_bytes(spec) * costs.student.parameters
    return NodePlan(
        node, assume, planned, places, fitting.needs, fitting.refusals(), costs.all_notes(), urgency, student_bytes, num_nodes
    )  # fmt: skip


@dataclass
class NodeCosts:
    """Tokens, FLOPs, disk and seconds of a step on a node."""

    spec: Experiment
    node: Node
    assume: Assumptions
    fitting: Fitting
    manifests: Iterable[Manifest] = ()
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.student = self.fitting.models.of(self.spec.student, "student")
        self.drawn = {one.identity: one.counts["num_problems"] for one in self.manifests if one.kind == "problems"}
        self.started: set[str] = set()
        limit = self.spec.generation.sampling.max_completion_tokens
        mean = self.assume.prompt_tokens + self.assume.share_of_limit * limit
        self.example_tokens = min(mean, float(self.spec.training.max_example_tokens))

    def of(self, step: Step) -> NodeStep:
        """A step's cost. Drawing, grading and building corpora take cores, not devices: they count as no time."""
        if step.kind in ("completions", "judgements", "evaluation"):
            return self._sampling(step)
        if step.kind == "branch":
            return self._training(step)
        if step.kind == "on-policy":
            return self._on_policy(step)
        if step.kind == "merge":
            return self._merging(step)
        return NodeStep(step, devices_needed(step), disk_bytes=50_000)

    def all_notes(self) -> list[str]:
        """What was taken from where, and what is not known."""
        models = [f"{model}: {_millions(found.parameters)} parameters"
                  f"{'' if found.is_dense else f', {_millions(found.active)} active'}, from {found.source}"
                  for (model, _), found in self.fitting.models.found.items()]  # fmt: skip
        return [*models, *dict.fromkeys(self.notes)]

    # --- training ---------------------------------------------------------------------------------------------------

    def _training(self, step: Step) -> NodeStep:
        training = Training.model_validate({**step.spec["training"], **step.locators["layout"]})
        student, length = self.student, self.example_tokens
        tokens = step.spec["num_steps"] * training.batch_size * length
        forward = 2.0 * student.active + attention_flops(student, length)
        # The backward pass is twice the forward one; frozen weights need no gradients of their own.
        passes = (2.0 if training.lora is not None else 3.0) + (1.0 if training.gradient_checkpointing else 0.0)
        flops = tokens * forward * passes
        rate = self.node.gpu.rate("float32" if training.precision == "float32" else "bfloat16")
        seconds = flops / (training.devices * rate * self.assume.training_utilization) if rate else None
        weights = published_bytes(self.spec) * student.parameters
        disk = (1 + len(step.spec["snapshot_steps"])) * weights
        if step.spec.get("keeps_optimizer"):
            disk += 2 * weights
        host = weights if training.devices > 1 else 0.0  # its processes load one whole copy in turn
        if training.offload_activations:
            host += training.devices * self._offloaded(training)
        return NodeStep(step, training.devices, tokens, flops, disk, host, seconds)

    def _on_policy(self, step: Step) -> NodeStep:
        """Sampling with transformers, the teachers' reading and training, one after another (docs/on-policy.md)."""
        training = Training.model_validate({**step.spec["training"], **step.locators["layout"]})
        limit, assume, student = step.spec["on_policy"]["max_completion_tokens"], self.assume, self.student
        length = assume.prompt_tokens + assume.share_of_limit * limit
        names = {name for name, _, _ in step.locators["teachers"]}
        teachers = [self.fitting.models.of(one, one.name) for one in self.spec.teachers if one.name in names]
        tokens = step.spec["num_steps"] * training.batch_size * length
        own, *read = (2.0 * model.active + attention_flops(model, length) for model in (student, *teachers))
        passes = (2.0 if training.lora is not None else 3.0) + (1.0 if training.gradient_checkpointing else 0.0)
        flops = tokens * (own * (1.0 + passes) + sum(read))
        rate, seconds = self.node.gpu.rate("float32" if training.precision == "float32" else "bfloat16"), None
        if rate and self.node.gpu.bandwidth is not None:
            weights = student.weight_bytes(2.0 if training.precision == "pure_bfloat16" else 4.0)
            one_token = max(weights / (self.node.gpu.bandwidth * assume.bandwidth_utilization), assume.step_seconds)
            seconds = step.spec["num_steps"] * limit * one_token  # a batch runs until its longest completion ends
            seconds += tokens * (own * passes + sum(read)) / (rate * assume.training_utilization)
        disk = (1 + len(step.spec["snapshot_steps"])) * published_bytes(self.spec) * student.parameters
        return NodeStep(step, devices_needed(step), tokens, flops, disk, 0.0, seconds)

    def _offloaded(self, training: Training) -> float:
        """Bytes that each device leaves in the host's memory at the longest pass."""
        largest = Pass.largest(training)
        kept = training.model_copy(update={"offload_activations": False})
        on, off = (memory_of(self.student.config, one, largest)["activations"] for one in (kept, training))
        return float(on - off)

    def _merging(self, step: Step) -> NodeStep:
        branches = sum(role.startswith("branch/") for role, _ in step.parents)
        weights = published_bytes(self.spec) * self.student.parameters
        host = 4.0 * self.student.largest_tensor * (branches + 2)  # the bound of docs/merging.md
        seconds = (branches + 2) * weights / self.assume.disk_bytes_per_second
        flops = 2.0 * self.student.parameters * branches
        return NodeStep(step, devices_needed(step), 0.0, flops, weights, host, seconds)

    # --- sampling ---------------------------------------------------------------------------------------------------

    def _sampling(self, step: Step) -> NodeStep:
        requests = self._num_requests(step)
        written = requests * self.assume.share_of_limit * step.spec["sampling"]["max_completion_tokens"]
        read = requests * self.assume.prompt_tokens
        tokens = written + read
        disk = ROW_COPIES * self.assume.bytes_per_token * tokens
        asked, stored = self._asked(step)
        if asked.endpoint is not None:
            prices = (
                asked.endpoint.price_per_million_prompt_tokens,
                asked.endpoint.price_per_million_completion_tokens,
            )
            money = None
            if prices[0] is not None and prices[1] is not None:
                money = (read * prices[0] + written * prices[1]) / 1e6
            else:
                self.notes.append(f"{asked.name}: behind an endpoint without prices, its money is not counted")
            self.notes.append(f"{asked.name}: behind an endpoint, its time is the server's and is not counted")
            return NodeStep(step, 0, tokens, 0.0, disk, money=money)
        if asked.rationales is not None:
            return NodeStep(step, 0, 0.0, 0.0, disk)
        if asked.completer not in ("vllm", "transformers"):
            self.notes.append(f"{asked.name}: completer {asked.completer} is one of your own, nothing is known of it")
            return NodeStep(step, devices_needed(step), tokens, 0.0, disk)
        model = self.fitting.models.of(asked, asked.name)
        flops = 2.0 * model.active * tokens + attention_flops(model, tokens / max(1, requests)) * tokens
        seconds = self._sampling_seconds(step, asked, model, stored, requests)
        return NodeStep(step, devices_needed(step), tokens, flops, disk, 0.0, seconds)

    def _asked(self, step: Step) -> tuple[Teacher, float | None]:
        """Who answers, and bytes of a weight where training has published it."""
        if step.kind == "completions" and step.facts["teacher"] != UNTRAINED_STUDENT:
            return next(one for one in self.spec.teachers if one.name == step.facts["teacher"]), None
        if step.kind == "judgements":
            assert self.spec.corpus.judge is not None
            return self.spec.corpus.judge, None
        evaluation, student = self.spec.evaluation, self.spec.student
        asked = Teacher(name="student", model=student.model, revision=student.revision,
                        completer=evaluation.completer, engine=evaluation.engine)  # fmt: skip
        return asked, published_bytes(self.spec) if any(role == "student" for role, _ in step.parents) else None

    def _num_requests(self, step: Step) -> int:
        problems = step.parent("problems")
        while problems.kind == "training-problems":
            problems = problems.parent("problems")
        known = problems.spec["num_problems"] or self.drawn.get(problems.identity)
        if known is None:
            hub = str((problems.spec["table"] or {}).get("hub"))
            known = PUBLISHED_ROWS.get(hub, self.assume.unknown_problems)
            counted = (
                f"at most the {known:,} rows of {hub}" if hub in PUBLISHED_ROWS
                else f"how many is not known here; {known:,} assumed (num_problems says it)"
            )  # fmt: skip
            self.notes.append(f"{problems.label}: all rows of their source, {counted}")
        return int(known * step.spec.get("num_samples", 1))

    def _sampling_seconds(
        self, step: Step, asked: Teacher, model: Architecture, stored: float | None, requests: int
    ) -> float | None:
        """Prompts are read at the device's rate. Tokens are written a step at a time: each reads the weights that it
        passes through and every running request's cache, or computes, whichever takes longer."""
        gpu, assume = self.node.gpu, self.assume
        if gpu.bandwidth is None:
            return None
        limit = step.spec["sampling"]["max_completion_tokens"]
        written, read = assume.share_of_limit * limit, float(assume.prompt_tokens)
        if asked.completer == "vllm":
            engine = asked.engine or Engine()
            weights, cache = weights_and_cache(model, engine, stored)
            devices, engines = engine.tensor_parallel_size * engine.pipeline_parallel_size, engine.data_parallel_size
            cap = int(engine.engine_args.get("max_num_seqs", assume.max_sequences))
            room = engine.gpu_memory_utilization * gpu.memory_gib - assume.engine_gib - weights / devices / 2**30
            held = max(1.0, room * 2**30 / (cache * (read + written / 2)))
            batch = max(1.0, min(requests / engines, held, cap))
            precision, least, start = "bfloat16", 0.0, self._start(step, asked)
            if weights < 1.5 * model.parameters and (engine.quantization == "fp8" or model.stored_bytes == 1.0):
                precision = "fp8"
            elif weights > 3.0 * model.parameters:
                precision = "float32"
            cache *= devices  # over all of an engine's devices
        else:
            weights, cache, devices, engines = model.weight_bytes(4.0), 4.0 * model.cache_values, 1, 1
            batch = float(min(requests, step.spec["batch_size"]))
            precision, least, start = "float32", assume.step_seconds, 0.0
            written = float(limit)  # a batch runs until its longest completion ends
        rate = gpu.rate(precision)
        if rate is None:
            return None
        rate *= devices * assume.prefill_utilization
        # Of a mixture's experts, a batch that is sent to them at random leaves some untouched.
        share = model.expert_share
        experts = (model.parameters - model.active) / (1.0 - share) if share < 1.0 else 0.0
        passed = weights * (1.0 - (1.0 - share) ** batch * experts / model.parameters)
        moved = passed + batch * cache * (read + written / 2)
        one_step = max(
            moved / (devices * gpu.bandwidth * assume.bandwidth_utilization), 2.0 * model.active * batch / rate, least
        )
        rounds = requests / engines / batch
        if asked.completer == "transformers":
            rounds = math.ceil(rounds)
        return float(start + rounds * written * one_step + requests * read * 2.0 * model.active / rate / engines)

    def _start(self, step: Step, asked: Teacher) -> float:
        """An engine starts once for all steps of one job: a teacher's, or those of one student."""
        place = step.spec.get("student_subdirectory")
        students = [f"{parent.identity}/{place}" for role, parent in step.parents if role == "student"]
        key = f"{step.kind} {asked.model} {students}"
        fresh = key not in self.started
        self.started.add(key)
        return self.assume.engine_start_seconds if fresh else 0.0


def _millions(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def attention_flops(model: Architecture, length: float) -> float:
    """Of one token's forward pass, for scores and their sums over the half of the row, on average, that is before it."""
    width: int = model.heads * (model.config.get("head_dim") or model.config["hidden_size"] // model.heads)
    layers: int = model.config["num_hidden_layers"]
    return 2.0 * 2.0 * layers * width * length / 2
