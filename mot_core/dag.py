"""Constructors for the experiment's steps: from specs to nodes, with nothing computed.

Each function decides what is part of a step's identity. Invariant: two calls that would give the same result
give the same identity, whichever experiment, method or round asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mot_core.identity import derive_seed
from mot_core.spec import Benchmark, Experiment, ProblemSource, Teacher
from mot_core.steps import ModelRef, Step
from mot_core.world import World

Do = Callable[..., None]
"""`do(*steps)`: see to it that these steps get published, in one worker, after their parents."""


@dataclass(frozen=True)
class StudentAt:
    """A student as it stands somewhere: the outside start, a step's output, or a snapshot inside a branch."""

    source: Step | ModelRef
    subdirectory: str | None = None

    def bind(self) -> tuple[dict[str, Any], tuple[tuple[str, Step], ...], dict[str, Any]]:
        """What a step that uses this student adds to its `(spec, parents, locators)`."""
        if isinstance(self.source, ModelRef):
            return (
                {"student": self.source.identity},
                (),
                {"student": self.source.locator, "student_revision": self.source.revision},
            )
        spec = {"student_subdirectory": self.subdirectory} if self.subdirectory else {}
        return spec, (("student", self.source),), {}


def problems_step(source: ProblemSource, world: World, *, split: str | None = None, num_problems: int | None = None,
                  label: str) -> Step:  # fmt: skip
    """Problems of a source, of another split or number if given."""
    spec = {
        "families": list(source.families) if source.families is not None else None,
        "file": world.files[source.file] if source.file is not None else None,
        "import_path": source.import_path,
        "num_problems": num_problems or source.num_problems,
        "split": split or source.split,
        "seed": source.seed,
    }
    locators = {"file": source.file} if source.file is not None else {}
    return Step("problems", spec, label=label, facts={"stage": "problems"}, locators=locators)


def completions_step(spec: Experiment, world: World, teacher: Teacher, problems: Step) -> Step:
    """A teacher's rationales on problems. Nothing of students or training enters: teachers are paid for once."""
    model = world.teachers[teacher.name]
    return Step(
        "completions",
        {
            "teacher": {"model": model.identity},
            "completer": teacher.completer,
            "sampling": spec.sampling_of(teacher).model_dump(mode="json"),
            "num_samples": spec.samples_of(teacher),
            "seed": spec.generation.seed,
            "batch_size": spec.generation.batch_size,
            "max_failed_share": spec.generation.max_failed_share,
        },
        (("problems", problems),),
        label=f"generate {teacher.name}",
        facts={"stage": "generation", "teacher": teacher.name},
        locators={"teacher": model.locator, "teacher_revision": model.revision},
    )


def verdicts_step(spec: Experiment, teacher: Teacher, problems: Step, completions: Step) -> Step:
    """Verdicts on a teacher's rationales."""
    return Step(
        "verdicts",
        {"grader": spec.corpus.grader},
        (("problems", problems), ("completions", completions)),
        label=f"verify {teacher.name}",
        facts={"stage": "verification", "teacher": teacher.name},
    )


def corpora_step(spec: Experiment, problems: Step, verdicts: Mapping[str, Step]) -> Step:
    """Matched corpora from every teacher's verdicts."""
    corpus = spec.corpus
    return Step(
        "corpora",
        {"num_rationales": corpus.num_rationales, "selection_seed": corpus.selection_seed, "choice": corpus.choice},
        (("problems", problems), *((f"verdicts/{name}", step) for name, step in verdicts.items())),
        label="match corpora",
        facts={"stage": "corpora"},
    )


def shuffled_corpora_step(corpora: Step, teachers: list[str], seed: int) -> Step:
    """The union of the corpora, split at random into as many parts as there are teachers."""
    return Step(
        "shuffled-corpora",
        {"teachers": teachers, "seed": derive_seed("shuffled", seed)},
        (("corpora", corpora),),
        label=f"shuffle corpora, seed {seed}",
        facts={"stage": "corpora", "seed": seed},
    )


def branch_step(
    spec: Experiment, student: StudentAt, corpora: Step, names: list[str], *, learning_rate: float, seed: int,
    first_step: int, num_steps: int, total_steps: int, snapshot_steps: list[int], label: str, facts: Mapping[str, Any],
) -> Step:  # fmt: skip
    """SFT of a student on one corpus or the union of several. The order of data depends on seed and place in
    the path, not on the corpus: matched branches see the same problems in the same order."""
    student_spec, student_parent, locators = student.bind()
    return Step(
        "branch",
        {
            **student_spec,
            "corpora": names,
            "training": {**spec.training.model_dump(mode="json"), "learning_rate": learning_rate},
            "order_seed": derive_seed("branch", seed, first_step),
            "first_step": first_step,
            "num_steps": num_steps,
            "total_steps": total_steps,
            "snapshot_steps": snapshot_steps,
        },
        (*student_parent, ("corpora", corpora)),
        label=label,
        facts={"stage": "training", "seed": seed, **facts},
        locators=locators,
    )


def merge_step(
    spec: Experiment, start: StudentAt, branches: Mapping[str, Step], *, label: str, facts: Mapping[str, Any]
) -> Step:
    """Branches of one start merged into the next student. Parents stand in the order of their identities, so that
    naming branches otherwise changes nothing."""
    student_spec, student_parent, locators = start.bind()
    weights = spec.merge.weights
    ordered = sorted(branches.items(), key=lambda item: item[1].identity)
    return Step(
        "merge",
        {
            **student_spec,
            "rule": spec.merge.rule,
            "weights": [weights[name] if weights is not None else 1.0 / len(branches) for name, _ in ordered],
        },
        (*student_parent, *((f"branch/{name}", step) for name, step in ordered)),
        label=label,
        facts={"stage": "merging", **facts},
        locators=locators,
    )


def benchmark_problems_step(spec: Experiment, world: World, benchmark: Benchmark, *, on: str) -> Step:
    """A benchmark's problems: `on='test'` as the benchmark says, `on='dev'` as `evaluation.path` says."""
    return problems_step(
        benchmark, world, split="dev" if on == "dev" else benchmark.split,
        num_problems=spec.evaluation.path.num_problems if on == "dev" else benchmark.num_problems,
        label=f"problems of {benchmark.name}, {on}",
    )  # fmt: skip


def evaluation_step(
    spec: Experiment, world: World, benchmark: Benchmark, student: StudentAt, *, on: str, label: str,
    facts: Mapping[str, Any],
) -> Step:  # fmt: skip
    """A student on a benchmark: `on='test'` as the benchmark says, `on='dev'` as `evaluation.path` says."""
    evaluation = spec.evaluation
    along_path = on == "dev"
    k = evaluation.path.k if along_path else benchmark.k
    problems = benchmark_problems_step(spec, world, benchmark, on=on)
    student_spec, student_parent, locators = student.bind()
    return Step(
        "evaluation",
        {
            **student_spec,
            "k": k,
            "num_samples": k if along_path else benchmark.samples_drawn,
            "sampling": benchmark.sampling.model_dump(mode="json"),
            "grader": benchmark.grader,
            "completer": "transformers",
            "seed": evaluation.seed,
            "batch_size": evaluation.batch_size,
            "max_failed_share": evaluation.max_failed_share,
        },
        (("problems", problems), *student_parent),
        label=label,
        facts={"stage": "evaluation", "benchmark": benchmark.name, "split": on, **facts},
        locators=locators,
    )


def path_snapshots(spec: Experiment, method: str) -> list[int]:
    """The optimizer steps inside a full-length branch at which a student is kept for evaluation."""
    along = spec.evaluation.path
    followed = along.methods is None or method in along.methods
    wanted = range(1, spec.rounds) if along.rounds == "all" else () if along.rounds == "last" else along.rounds
    wanted = wanted if followed else ()
    kept = {r for r in wanted if isinstance(r, int)} | {spec.final_round}
    return [r * spec.steps_per_round for r in sorted(kept) if r < spec.rounds]
