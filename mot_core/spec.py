"""What an experiment is: frozen, nested, complete specs, and errors that name file, field, value and remedy.

Invariant: a spec that loads is consistent in itself (names unique, weights that sum, k within the samples).
What only the world can answer (does the model exist, does its tokenizer have a template) is asked by
`mot_core.world`, also before any compute is claimed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mot_core.identity import fingerprint

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
BudgetName = Literal["matched_path", "matched_compute"]

BUILTIN_METHODS = ("base", "std", "mtd", "merge_once", "mot", "ensemble", "shuffled")
TRAINED_METHODS = ("std", "mtd", "merge_once", "mot", "shuffled")


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Sampling(Spec):
    """How completions are drawn."""

    temperature: float = Field(0.7, ge=0.0, le=2.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_completion_tokens: int = Field(96, ge=1, description="longer completions are cut and count as truncated")


class Model(Spec):
    """Weights by name: `lab:NAME` (shipped), a local directory, or a hub id with its revision."""

    name: Name
    model: str = Field(min_length=1)
    revision: str | None = Field(None, description="hub ids only: a tag or commit; absent means the hub's main")


class Teacher(Model):
    """One source of rationales. `sampling` and `num_samples`, where absent, are those of `generation`."""

    completer: str = Field("transformers", description="a registered completer, or package.module:Class")
    sampling: Sampling | None = None
    num_samples: int | None = Field(None, ge=1)


class Student(Model):
    """The model that is distilled into; every round starts from it or from its last merge."""


class ProblemSource(Spec):
    """Where problems come from: exactly one of `families`, `file`, `import_path`."""

    families: tuple[str, ...] | None = Field(None, description="laboratory problem families")
    file: str | None = Field(None, description="JSONL with the keys question and answer; family and split are optional")
    import_path: str | None = Field(None, description="package.module:function(split, num_problems, seed)")
    num_problems: int = Field(ge=1, description="in all, shared evenly between the families")
    split: Literal["train", "dev", "test"] = "train"
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_source(self) -> ProblemSource:
        given = [name for name in ("families", "file", "import_path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of families, file, import_path; got {given or 'none'}")
        if self.families is not None and len(set(self.families)) != len(self.families):
            raise ValueError(f"families repeats a name: {list(self.families)}")
        return self


class Generation(Spec):
    """How the teachers are sampled. Training seeds do not enter: teachers are paid for once."""

    seed: Seed = 0
    num_samples: int = Field(1, ge=1, description="rationales a problem and teacher")
    sampling: Sampling = Sampling()
    batch_size: int = Field(256, ge=1, description="requests in one batch, the unit of resumption")
    max_failed_share: float = Field(0.05, ge=0.0, le=1.0, description="more failed requests stop the step")


class Corpus(Spec):
    """From graded rationales to one matched corpus a teacher: the same problems, one rationale each."""

    num_rationales: int = Field(200, ge=1)
    selection_seed: Seed = 0
    choice: Literal["first", "shortest", "random"] = Field("first", description="among a problem's correct ones")
    grader: str = Field("family", description="a registered grader, or package.module:function")


class Training(Spec):
    """One branch's optimisation. The paper leaves all but the step counts open (paper.md)."""

    learning_rate: float = Field(5e-4, gt=0.0, description="where a method gives none of its own")
    batch_size: int = Field(32, ge=1, description="examples an optimizer step")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.95, ge=0.0, lt=1.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    max_example_tokens: int = Field(192, ge=2, description="longer examples stop the branch; none is cut silently")


class Merge(Spec):
    """How branches become the next student: θₜ ← Σ wₖ θₜᵏ (paper, method)."""

    rule: str = Field("mean", description="a registered rule, or package.module:function")
    weights: dict[str, float] | None = Field(None, description="teacher → weight, for the rule weighted_mean")

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Merge:
        if (self.rule == "weighted_mean") != (self.weights is not None):
            raise ValueError("weights belong to the rule weighted_mean: give both or neither")
        if self.weights is not None:
            total = math.fsum(self.weights.values())
            if abs(total - 1.0) > 1e-6:
                raise ValueError(f"weights must sum to 1, got {total:g} from {self.weights}")
            if any(weight < 0.0 for weight in self.weights.values()):
                raise ValueError(f"weights must not be negative, got {self.weights}")
        return self


class Method(Spec):
    """One way to distil, with the learning rate that its own sweep chose."""

    name: Name
    learning_rate: float | None = Field(None, gt=0.0, description="absent: training.learning_rate")
    import_path: str | None = Field(None, description="a method of your own: package.module:function")


class Benchmark(ProblemSource):
    """Problems with a grader, asked k times each."""

    name: Name
    role: Literal["home", "panel"] = Field("home", description="home: what is distilled; panel: what may be forgotten")
    split: Literal["train", "dev", "test"] = "test"
    k: int = Field(4, ge=1, description="the k of avg@k: how many samples of a problem are averaged")
    num_samples: int | None = Field(None, ge=1, description="samples drawn a problem; absent: k")
    sampling: Sampling = Sampling()
    grader: str = Field("family", description="a registered grader, or package.module:function")

    @model_validator(mode="after")
    def _k_within_samples(self) -> Benchmark:
        if self.num_samples is not None and self.k > self.num_samples:
            raise ValueError(
                f"k is {self.k} but only {self.num_samples} samples are drawn; lower k or raise num_samples"
            )
        return self

    @property
    def samples_drawn(self) -> int:
        return self.num_samples if self.num_samples is not None else self.k


class PathEvaluation(Spec):
    """Evaluation along the path, on the dev split: choices are made here, never on test."""

    rounds: Literal["all", "last"] | tuple[int, ...] = "all"
    num_problems: int = Field(200, ge=1, description="a benchmark")
    k: int = Field(1, ge=1)
    methods: tuple[str, ...] | None = Field(None, description="whose rounds; absent: all. Every method's last is")


class Evaluation(Spec):
    """What is measured, when. The test split is touched once: by the students that the stopping rule chose."""

    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)
    path: PathEvaluation = PathEvaluation()
    seed: Seed = 0
    batch_size: int = Field(256, ge=1)
    max_failed_share: float = Field(0.05, ge=0.0, le=1.0)
    ci_resamples: int = Field(10_000, ge=100)


class Tuning(Spec):
    """The sweep that gives each method its learning rate: same grid, same dev problems, one training seed."""

    learning_rates: tuple[float, ...] = Field((2e-4, 5e-4, 1e-3), min_length=1)
    training_seed: Seed = 1000
    record: str | None = Field(None, description="identity of the sweep whose choices this spec carries")


class Experiment(Spec):
    """One experiment: the whole DAG from problems to report follows from it."""

    name: Name
    description: str = ""
    student: Student
    teachers: tuple[Teacher, ...] = Field(min_length=1)
    problems: ProblemSource
    generation: Generation = Generation()
    corpus: Corpus = Corpus()
    training: Training = Training()
    rounds: int = Field(5, ge=1, description="T (paper: 5)")
    steps_per_round: int = Field(50, ge=1, description="S, optimizer steps a branch a round (paper: 50)")
    merge: Merge = Merge()
    stopping_rule: Literal["last_round"] | int = Field(
        "last_round", description="or a round's number, fixed before anything is measured; never the best of the rounds"
    )
    methods: tuple[Method, ...] = Field(min_length=1)
    budgets: tuple[BudgetName, ...] = Field(("matched_path",), min_length=1)
    training_seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    evaluation: Evaluation
    tuning: Tuning = Tuning()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        _unique("teachers", [teacher.name for teacher in self.teachers])
        _unique("methods", [method.name for method in self.methods])
        _unique("budgets", list(self.budgets))
        _unique("training_seeds", [str(seed) for seed in self.training_seeds])
        _unique("evaluation.benchmarks", [benchmark.name for benchmark in self.evaluation.benchmarks])
        if not any(benchmark.role == "home" for benchmark in self.evaluation.benchmarks):
            raise ValueError("evaluation.benchmarks has none of role 'home': the best teacher is chosen on home, dev")
        self._check_methods()
        self._check_merge_weights()
        rounds = self.evaluation.path.rounds
        if not isinstance(rounds, str):
            outside = [r for r in rounds if not 1 <= r <= self.rounds]
            if outside:
                raise ValueError(f"evaluation.path.rounds names {outside}, outside 1…{self.rounds}")
        if isinstance(self.stopping_rule, int) and not 1 <= self.stopping_rule <= self.rounds:
            raise ValueError(f"stopping_rule is round {self.stopping_rule}, outside 1…{self.rounds}")
        return self

    def _check_methods(self) -> None:
        names = {method.name for method in self.methods}
        for method in self.methods:
            if method.import_path is None and method.name not in BUILTIN_METHODS:
                raise ValueError(
                    f"method {method.name!r} is not known; known: {', '.join(BUILTIN_METHODS)}; "
                    f"{nearest(method.name, BUILTIN_METHODS)}or give import_path for one of your own"
                )
        if "ensemble" in names and "std" not in names:
            raise ValueError("method 'ensemble' votes over the STD students: add 'std'")
        unknown = set(self.evaluation.path.methods or ()) - names
        if unknown:
            raise ValueError(f"evaluation.path.methods names {sorted(unknown)}, not among methods: {sorted(names)}")

    def _check_merge_weights(self) -> None:
        if self.merge.weights is not None:
            expected = {teacher.name for teacher in self.teachers}
            if set(self.merge.weights) != expected:
                raise ValueError(
                    f"merge.weights names {sorted(self.merge.weights)}, expected every teacher: {sorted(expected)}"
                )

    @property
    def identity(self) -> str:
        """The spec's own hash (description apart, which changes no result)."""
        return fingerprint(self.model_dump(mode="json", exclude={"description"}))

    @property
    def final_round(self) -> int:
        """The round whose student is reported."""
        return self.rounds if self.stopping_rule == "last_round" else int(self.stopping_rule)

    def learning_rate(self, method_name: str) -> float:
        """The rate that a method trains at."""
        for method in self.methods:
            if method.name == method_name and method.learning_rate is not None:
                return method.learning_rate
        return self.training.learning_rate

    def sampling_of(self, teacher: Teacher) -> Sampling:
        return teacher.sampling if teacher.sampling is not None else self.generation.sampling

    def samples_of(self, teacher: Teacher) -> int:
        return teacher.num_samples if teacher.num_samples is not None else self.generation.num_samples


def nearest(word: str, allowed: Any) -> str:
    """`did you mean 'x'? ` for the closest allowed word, or nothing."""
    import difflib

    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}? " if matches else ""


def _unique(where: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where}: duplicate {', '.join(map(repr, repeated))}; each name must be given once")


def local_directory(model: str) -> Path | None:
    """The directory that a model reference names, if it names one (`lab:NAME` or an existing path)."""
    if model.startswith("lab:"):
        from mot_core.lab import lab_model_path

        return lab_model_path(model.removeprefix("lab:"))
    path = Path(model).expanduser()
    return path if path.is_dir() else None
