"""What a spec needs of each GPU of a node, and the smallest change of the spec with which it fits.

Invariant: a suggestion was applied to the spec and counted again before it is made; one that changes results comes only
after every one that does not.
Longer than most: a change is found by counting the need that it mends again, so needs and changes stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from mot_core.architectures import Architecture, architecture_of
from mot_core.errors import SpecError
from mot_core.nodes import GIB, Assumptions, Node
from mot_core.sft.memory import Pass, memory_of, on_policy_memory, teacher_value_bytes
from mot_core.sft.vocabulary import on_policy_teachers
from mot_core.spec import Engine, Experiment, Model, Teacher
from mot_core.spec_files import overridden

WIDTHS = (1, 2, 4, 8, 16)
"""Numbers of devices that a change tries."""
CHECKPOINTING, OFFLOADING = "training.gradient_checkpointing=true", "training.offload_activations=true"
"""The second is suggested only beside the first: of every layer whole, a node's processes would offload hundreds of GB."""
_DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass
class Models:
    """The architectures of a spec's models, each looked up once."""

    ask_hub: bool = True
    found: dict[tuple[str, str | None], Architecture] = field(default_factory=dict)

    def of(self, model: Model, where: str) -> Architecture:
        key = (model.model, model.revision)
        if key not in self.found:
            self.found[key] = architecture_of(*key, where, ask_hub=self.ask_hub)
        return self.found[key]


@dataclass(frozen=True)
class Need:
    """What one kind of work takes of each of its devices, bytes by part; and what there is."""

    what: str
    stage: str
    fields: str
    devices: int
    parts: dict[str, float]
    available: float
    refusal: str | None = None
    """Why it cannot run at all, whatever the memory."""
    requests: float | None = None
    """Of an engine: how many requests of full length its cache holds."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.refusal is None and self.total <= self.available

    def explain(self) -> str:
        if self.refusal is not None:
            return f"{self.what}: {self.refusal}"
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size > 0.05 * GIB)
        return (
            f"{self.what}: {self.fields} need {self.total / GIB:.1f} GiB on each of {self.devices} GPU(s) ({parts}), but "
            f"{self.available / GIB:.1f} GiB are available"
        )


@dataclass(frozen=True)
class Work:
    """A kind of work on devices: its need under a spec (None where the spec has none), and changes to try: those that
    change no result beyond rounding, and the others, in order."""

    name: str
    need: Callable[[Experiment], Need | None]
    harmless: tuple[str, ...]
    others: tuple[str, ...]


class Fitting:
    """The needs of a spec on a node."""

    def __init__(self, spec: Experiment, node: Node, assume: Assumptions, models: Models) -> None:
        self.spec, self.node, self.assume, self.models = spec, node, assume, models
        self.works = self._works()
        self.needs = {work.name: need for work in self.works if (need := work.need(spec)) is not None}

    def refusals(self) -> list[str]:
        """A paragraph for each kind of work that cannot run, with the smallest change that lets it."""
        lines = []
        for work in self.works:
            need = self.needs.get(work.name)
            if need is None or need.fits:
                continue
            change = self.smallest_change(work)
            remedy = (
                "no change that was tried makes it fit: use a smaller model or larger GPUs"
                if change is None
                else "the smallest change that fits: " + " ".join(f"--set {_quoted(one)}" for one in change)
            )
            lines.append(f"{need.explain()}; {remedy}")
        return lines

    def smallest_change(self, work: Work) -> list[str] | None:
        """Single changes first, then pairs, then as many as it takes, without those that turn out to be needless."""

        def fits(change: Sequence[str]) -> bool:
            if OFFLOADING in change and not (self.spec.training.gradient_checkpointing or CHECKPOINTING in change):
                return False
            try:
                need = work.need(overridden(self.spec, list(change)))
            except SpecError:  # settings that exclude each other
                return False
            return need is None or need.fits

        harmless, others = work.harmless, work.others
        tries: list[Sequence[str]] = [(one,) for one in harmless]
        tries += [pair for pair in combinations(harmless, 2) if _keys_differ(pair)]
        tries.append(self._all_of(harmless))
        tries += [(one,) for one in others]
        tries += [(one, other) for other in others for one in harmless if _keys_differ((one, other))]
        tries += [pair for pair in combinations(others, 2) if _keys_differ(pair)]
        tries += [self._all_of([*harmless, *others[: count + 1]]) for count in range(len(others))]
        for change in tries:
            if change and fits(change):
                kept = list(change)
                for one in change:
                    rest = [other for other in kept if other != one]
                    if rest and fits(rest):
                        kept = rest
                return kept
        return None

    def _all_of(self, changes: Sequence[str]) -> list[str]:
        """All changes together, the last of each field, without those that the ones before it exclude."""
        last = {change.partition("=")[0]: change for change in changes}
        kept: list[str] = []
        for change in last.values():
            try:
                overridden(self.spec, [*kept, change])
            except SpecError:
                continue
            kept.append(change)
        return kept

    # --- training ---------------------------------------------------------------------------------------------------

    def training(self, spec: Experiment) -> Need | None:
        """A branch at its longest pass."""
        training, count = spec.training, spec.training.devices
        what = f"training {spec.student.name}"
        if all(method.name in ("base", "ensemble") for method in spec.methods):
            return None
        student = self.models.of(spec.student, "student")
        if not student.is_dense:
            return _refused(
                what, "training", f"{spec.student.model} is a mixture of experts; training is counted for dense ones"
            )
        if count > self.node.count:
            return _refused(
                what, "training", f"training.devices takes {count} GPUs, and {self.node} has {self.node.count}"
            )
        largest = Pass.largest(training)
        parts: dict[str, float] = dict(memory_of(student.config, training, largest))
        parts["slack"] = self.assume.training_slack_gib * GIB
        tokens = largest.rows * largest.length
        fields = f"{count} device(s), passes of up to {tokens:,} tokens (training.*)"
        return Need(what, "training", fields, count, parts, self._usable)

    def on_policy(self, spec: Experiment) -> Need | None:
        """A student and its teachers at the longest pass of an on-policy step, or at its sampling (docs/on-policy.md)."""
        sets = [
            [self.models.of(one, f"teachers.{one.name}") for one in asked]
            for asked in on_policy_teachers(spec).values()
        ]
        if not sets:
            return None
        training, settings, student = spec.training, spec.on_policy, self.models.of(spec.student, "student")
        limit = settings.max_completion_tokens or spec.generation.sampling.max_completion_tokens
        length = self.assume.longest_prompt_tokens + limit
        padded = training.model_copy(update={"layout": "padded", "loss": "full", "devices": 1})
        largest = Pass.expected(padded, length, limit)
        needs = [
            on_policy_memory(
                student.config, padded, largest, num_targets=len(teachers) if settings.target == "each" else 1,
                teacher_bytes=sum(one.weight_bytes(float(teacher_value_bytes(training))) for one in teachers),
                cache_bytes=4.0 * training.batch_size * length * student.cache_values,
            )
            for teachers in sets
        ]  # fmt: skip
        most = max(needs, key=lambda need: sum(need.values()))
        parts: dict[str, float] = dict(most)
        parts["slack"] = self.assume.training_slack_gib * GIB
        fields = f"one device, passes of up to {largest.rows * largest.length:,} tokens (training.*, on_policy.*)"
        return Need(f"on-policy {spec.student.name}", "training", fields, 1, parts, self._usable)

    def _training_changes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        training = self.spec.training
        longest = training.max_example_tokens
        harmless = []
        if training.micro_batch_tokens is None or training.micro_batch_tokens > longest:
            harmless.append(f"training.micro_batch_tokens={longest}")
        if training.layout != "packed":
            harmless.append("training.layout=packed")
        if training.loss != "chunked":
            harmless.append("training.loss=chunked")
        if not training.gradient_checkpointing:
            harmless.append(CHECKPOINTING)
        if not training.offload_activations:
            harmless.append(OFFLOADING)
        harmless += [f"training.devices={width}" for width in self._widths(training.devices)]
        rank = training.lora.rank if training.lora is not None else 16
        others = (
            "training.optimizer=adamw8bit", "training.precision=pure_bfloat16", f"training.lora={{rank: {rank}}}",
            f"training.lora={{rank: {rank}, quantization: nf4}}",
        )  # fmt: skip
        return tuple(harmless), others[2:] if training.lora is not None else others

    # --- sampling ---------------------------------------------------------------------------------------------------

    def asking(
        self, asked: Teacher, limit: int, batch_size: int, what: str, fields: str, stored: float | None = None
    ) -> Need | None:
        """Whoever is asked with weights on the node, as `fields` of the spec say; None for an endpoint, for rows, and for a completer of one's own."""
        if asked.completer not in ("vllm", "transformers"):
            return None
        model = self.models.of(asked, fields)
        stages = {"evaluation": "evaluation", "corpus.judge": "verification"}
        stage = stages.get(fields, "generation")
        if asked.completer == "vllm":
            return self.engine(model, asked.engine or Engine(), what, stage, f"{fields}.engine", stored)
        return self.transformers(model, limit, batch_size, what, stage, fields)

    def evaluation(self, spec: Experiment) -> Need | None:
        """Students, as training publishes them."""
        student, limit = self._as_asked(spec)
        what = f"evaluating {spec.student.name}"
        return self.asking(student, limit, spec.evaluation.batch_size, what, "evaluation", published_bytes(spec))

    def _as_asked(self, spec: Experiment) -> tuple[Teacher, int]:
        """The student as one that is asked, and its longest completion."""
        evaluation = spec.evaluation
        asked = Teacher(
            name="student", model=spec.student.model, revision=spec.student.revision, completer=evaluation.completer,
            engine=evaluation.engine,
        )  # fmt: skip
        return asked, max(benchmark.sampling.max_completion_tokens for benchmark in evaluation.benchmarks)

    def engine(
        self, model: Architecture, engine: Engine, what: str, stage: str, fields: str, stored: float | None
    ) -> Need:
        """vLLM: weights, and a cache for one request of full length at least."""
        tensor, pipeline, count = engine.tensor_parallel_size, engine.pipeline_parallel_size, engine.num_devices
        if count > self.node.count:
            return _refused(what, stage, f"{fields} takes {count} GPUs, and {self.node} has {self.node.count}")
        if model.heads % tensor:
            return _refused(what, stage, f"{fields}.tensor_parallel_size {tensor} does not divide {model.heads} heads")
        weights, cache = weights_and_cache(model, engine, stored)
        length = engine.max_model_len or model.context
        parts = {
            "weights": weights / (tensor * pipeline),
            f"cache of one request of {length:,} tokens": cache * length,
            "engine": self.assume.engine_gib * GIB,
        }
        budget = engine.gpu_memory_utilization * self.node.gpu.memory_gib * GIB
        room = budget - parts["weights"] - parts["engine"]
        return Need(
            what, stage, f"{fields} (gpu_memory_utilization {engine.gpu_memory_utilization:g})", count, parts, budget,
            requests=max(0.0, room / (cache * length)),
        )  # fmt: skip

    def transformers(
        self, model: Architecture, limit: int, batch_size: int, what: str, stage: str, fields: str
    ) -> Need:
        """The completer transformers: weights in fp32 on one device, and a batch at its full length."""
        length = self.assume.longest_prompt_tokens + limit
        parts = {
            "weights": model.weight_bytes(4.0),
            f"cache of {batch_size} requests": 4.0 * batch_size * length * model.cache_values,
            # Of one position: the logits, and as many again with their noise.
            "logits": 8.0 * batch_size * model.config["vocab_size"],
        }
        return Need(what, stage, f"{fields} with completer transformers", 1, parts, self._usable)

    def _sampling_work(
        self, name: str, need: Callable[[Experiment], Need | None], asked: Teacher, batch: str, limit: int,
        stored: float | None,
    ) -> Work:  # fmt: skip
        """`asked`: whose completer and engine stand under the field `name`; `batch`: the part that has batch_size."""
        engine = asked.engine or Engine()
        widths = self._widths(engine.tensor_parallel_size)
        harmless = [f"{name}.engine.tensor_parallel_size={width}" for width in widths]
        if engine.data_parallel_size > 1:
            fewer = [width for width in WIDTHS[::-1] if width < engine.data_parallel_size]
            harmless += [f"{name}.engine.data_parallel_size={width}" for width in fewer]
        others: list[str] = []
        if asked.completer == "transformers":
            # A request's batch and its completer are part of who answers.
            sizes = [size for power in range(10, -1, -1) if (size := 1 << power) < getattr(self.spec, batch).batch_size]
            others += [*(f"{batch}.batch_size={size}" for size in sizes), f"{name}.completer=vllm"]
        length = limit + self.assume.longest_prompt_tokens
        if engine.max_model_len is None or engine.max_model_len > length:
            others.append(f"{name}.engine.max_model_len={length}")
        if stored == 4.0 and engine.dtype == "auto":
            others.append(f"{name}.engine.dtype=bfloat16")
        if engine.quantization is None:
            others.append(f"{name}.engine.quantization=fp8")
        return Work(name, need, tuple(harmless), tuple(others))

    def _widths(self, current: int) -> list[int]:
        """Other numbers of devices to try: more of them, the fewest first; fewer where there are not so many."""
        widths = [width for width in WIDTHS if width <= self.node.count and width != current]
        return [width for width in widths if width > current] or widths[::-1]

    # --- all of it --------------------------------------------------------------------------------------------------

    def _works(self) -> list[Work]:
        spec = self.spec
        works = [self._teacher_work(f"teachers.{one.name}", index, one) for index, one in enumerate(spec.teachers)]
        if spec.corpus.judge is not None:
            works.append(self._teacher_work("corpus.judge", None, spec.corpus.judge))
        works.append(Work("training", self.training, *self._training_changes()))
        passes = (f"training.micro_batch_tokens={spec.training.max_example_tokens}", CHECKPOINTING)
        works.append(Work("on-policy", self.on_policy, passes, ("training.precision=pure_bfloat16",)))
        student, limit = self._as_asked(spec)
        works.append(
            self._sampling_work("evaluation", self.evaluation, student, "evaluation", limit, published_bytes(spec))
        )
        works.append(Work("merge.barrier", self._barrier, (), ("merge.barrier=null",)))
        works.append(Work("corpus.choice", self._likeliest, (), ("corpus.choice=first",)))
        return works

    def _teacher_work(self, name: str, index: int | None, teacher: Teacher) -> Work:
        """`index`: a teacher's place in the spec, under which a change is looked up again; None for the judge."""

        def need(spec: Experiment) -> Need | None:
            asked = spec.teachers[index] if index is not None else spec.corpus.judge
            assert asked is not None
            limit = spec.generation.sampling_of(asked).max_completion_tokens
            return self.asking(asked, limit, spec.generation.batch_size, f"asking {asked.name}", name)

        limit = self.spec.generation.sampling_of(teacher).max_completion_tokens
        stored = self.models.of(teacher, name).stored_bytes if teacher.completer == "vllm" else None
        return self._sampling_work(name, need, teacher, "generation", limit, stored)

    def _barrier(self, spec: Experiment) -> Need | None:
        return self._whole_student(spec, "merge.barrier", "merging") if spec.merge.barrier is not None else None

    def _likeliest(self, spec: Experiment) -> Need | None:
        return (
            self._whole_student(spec, "corpus.choice likeliest", "corpora")
            if spec.corpus.choice == "likeliest"
            else None
        )

    def _whole_student(self, spec: Experiment, fields: str, stage: str) -> Need:
        """The student in fp32 on one device, with one example at a time."""
        student = self.models.of(spec.student, "student")
        return Need(fields, stage, "the student in fp32", 1, {"weights": student.weight_bytes(4.0)}, self._usable)

    @property
    def _usable(self) -> float:
        return (self.node.gpu.memory_gib - self.assume.context_gib) * GIB


def weights_and_cache(model: Architecture, engine: Engine, stored: float | None) -> tuple[float, float]:
    """Bytes of all weights in an engine, and of one token in the cache of one device. `stored`: of a weight, where it
    is not the published model's own."""
    own = stored or model.stored_bytes
    quantized = own < 2.0 or engine.quantization is not None
    chosen = _DTYPE_BYTES.get(engine.dtype)
    if engine.quantization is not None:
        weights = model.weight_bytes(None, engine.quantization)
    else:
        weights = model.weight_bytes() if own < 2.0 else model.weight_bytes(chosen or own)
    cached = 1.0 if str(engine.engine_args.get("kv_cache_dtype", "")).startswith("fp8") else chosen
    value_bytes = cached or (2.0 if quantized else own)
    shares = min(engine.tensor_parallel_size, model.kv_heads) * engine.pipeline_parallel_size
    return weights, model.cache_values * value_bytes / shares


def _refused(what: str, stage: str, why: str) -> Need:
    return Need(what, stage, "", 0, {}, 0.0, refusal=why)


def published_bytes(spec: Experiment) -> float:
    """Bytes of a weight of the students that training publishes."""
    return 2.0 if spec.training.precision == "pure_bfloat16" else 4.0


def _keys_differ(changes: Sequence[str]) -> bool:
    keys = [change.partition("=")[0] for change in changes]
    return len(set(keys)) == len(keys)


def _quoted(change: str) -> str:
    return f"'{change}'" if " " in change else change
