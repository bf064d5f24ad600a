"""The main path: Merge-of-Thought as an experiment, from problems to evaluated students. Read this first.

    problems → rationales of each teacher → verdicts → corpora → methods → evaluation

Every line builds steps (values: `mot_core.dag`) and hands them to `do`, which is all that differs between
planning them and running them as Prefect tasks (`flows.orchestrate`). Comparison and report follow from what
is published (`mot_core.tables`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mot_core.dag import (
    Do,
    StudentAt,
    benchmark_problems_step,
    completions_step,
    corpora_step,
    evaluation_step,
    harness_step,
    judgements_step,
    overlap_step,
    path_snapshots,
    training_problems_step,
    verdicts_step,
)
from mot_core.methods import Distilled, Setting, method_named
from mot_core.spec import Experiment, Teacher
from mot_core.spec import Harness as HarnessSpec
from mot_core.spec import Method as MethodSpec
from mot_core.steps import Step
from mot_core.world import JUDGE, UNTRAINED_STUDENT, World


@dataclass(frozen=True)
class Evaluated:
    """One student at one round, with the evaluations asked of it: `(benchmark name, split, step)`."""

    method: str
    budget: str
    seed: int
    round_index: float
    is_final: bool
    student: StudentAt
    path: Distilled
    evaluations: tuple[tuple[str, str, Step], ...]
    harness: tuple[tuple[HarnessSpec, Step], ...] = ()
    """What lm-evaluation-harness measures of a final student."""


@dataclass(frozen=True)
class Outline:
    """The experiment's nodes that results are read from."""

    problems: Step
    verdicts: dict[str, Step]
    judgements: dict[str, Step]
    corpora: Step
    students: tuple[Evaluated, ...]


def experiment(spec: Experiment, world: World, do: Do, touch_test: bool = True) -> Outline:
    """Everything that the spec asks for. `touch_test=False` stops at the dev split (tuning)."""
    assert world.removed is not None, "mot_core.prepare has to look for overlap before the graph is built"
    do(*benchmark_problems(spec, world))
    overlap = overlap_step(spec, world)
    do(overlap.parent("problems"))
    do(overlap)
    problems = training_problems_step(overlap, world.removed)
    do(problems)
    verdicts: dict[str, Step] = {}
    judgements: dict[str, Step] = {}
    for teacher in spec.teachers:
        verdicts[teacher.name] = answer_and_verify(spec, world, teacher, problems, teacher.name, do)
        if spec.corpus.judge is not None:
            judgements[teacher.name] = judgements_step(
                spec.generation, spec.corpus.judge, world.models[JUDGE], problems, verdicts[teacher.name],
                name=teacher.name,
            )  # fmt: skip
            do(judgements[teacher.name])
    corpora = corpora_step(spec, world, problems, verdicts, student_attempts(spec, world, problems, do))
    do(corpora)

    students: list[Evaluated] = []
    for budget in spec.budgets:
        for seed in spec.training_seeds:
            for method in spec.methods:
                for path in distil(spec, world, corpora, budget, seed, method, do):
                    students += evaluate(spec, world, budget, seed, method, path, do, touch_test)
    return Outline(problems, verdicts, judgements, corpora, tuple(students))


def benchmark_problems(spec: Experiment, world: World) -> list[Step]:
    """The problems of every benchmark, on dev and on test: training problems are checked against both."""
    return [
        benchmark_problems_step(spec, world, b, on=on)
        for on in ("dev", "test") for b in spec.evaluation.benchmarks if b.has_dev or on == "test"
    ]  # fmt: skip


def answer_and_verify(
    spec: Experiment, world: World, teacher: Teacher, problems: Step, name: str, do: Do, num_samples: int | None = None
) -> Step:
    """A teacher's verdicts on problems, its rationales before them."""
    rationales = completions_step(
        spec.generation, teacher, world.models[name], problems, name=name, num_samples=num_samples
    )
    do(rationales)
    verdicts = verdicts_step(spec.corpus.grader, problems, rationales, name=name)
    do(verdicts)
    return verdicts


def student_attempts(spec: Experiment, world: World, problems: Step, do: Do) -> Step | None:
    """The untrained student's own verdicts on the training problems, where the corpus asks how hard they are."""
    if spec.corpus.difficulty is None:
        return None
    asked = Teacher(
        name="student", model=spec.student.model, revision=spec.student.revision,
        completer=spec.evaluation.completer, engine=spec.evaluation.engine,
    )  # fmt: skip
    return answer_and_verify(spec, world, asked, problems, UNTRAINED_STUDENT, do, spec.corpus.difficulty_samples)


def distil(
    spec: Experiment, world: World, corpora: Step, budget: str, seed: int, method: MethodSpec, do: Do
) -> list[Distilled]:
    """The students that one method trains with one seed under one budget."""
    # Branches that are STD's must ask for STD's snapshots to be the same steps.
    snapshots = path_snapshots(spec, method.name if method.builtin in ("std", "mtd") else "std")
    own = spec.model_copy(update={"training": spec.training_of(method)})
    setting = Setting(method.name, own, world, corpora, budget, seed, spec.learning_rate(method.name), snapshots)
    return method_named(method)(setting, do)


def evaluate(
    spec: Experiment, world: World, budget: str, seed: int, method: MethodSpec, path: Distilled, do: Do,
    touch_test: bool,
) -> list[Evaluated]:  # fmt: skip
    """The path's students on the dev split, round by round, and inside rounds where that is asked for; only its final one
    on the test split."""
    final_round = path.final_round if path.final_round is not None else spec.final_round
    evaluated = []
    for round_index, student in path.rounds.items():
        is_final = round_index == final_round
        splits = ["dev"] if is_final or _asked_for(spec, method.name, path, round_index) else []
        if is_final and touch_test:
            splits.append("test")
        facts = {"method": path.label, "seed": seed, "round": round_index, "budget": budget}
        what = f"{path.label} round {round_index:g}" if round_index else path.label
        evaluations = tuple(
            (benchmark.name, split, evaluation_step(
                spec, world, benchmark, student, on=split, facts=facts,
                label=f"evaluate {what}, seed {seed}, {benchmark.name} ({split})",
            ))
            for split in splits for benchmark in spec.evaluation.benchmarks if benchmark.has_dev or split == "test"
        )  # fmt: skip
        harness = tuple(
            (entry, harness_step(world, entry, student, facts=facts, label=f"evaluate {what}, seed {seed}, {entry.name} (lm-eval)"))
            for entry in (spec.evaluation.harness if "test" in splits else ())
        )  # fmt: skip
        if evaluations:
            do(*[step for _, _, step in evaluations], *[step for _, step in harness])
            evaluated.append(
                Evaluated(method.name, budget, seed, round_index, is_final, student, path, evaluations, harness)
            )
    return evaluated


def _asked_for(spec: Experiment, method_name: str, path: Distilled, round_index: float) -> bool:
    along = spec.evaluation.path
    if along.methods is not None and method_name not in along.methods:
        return False
    is_snapshot = path.rounds[round_index].subdirectory is not None
    if along.every_steps is not None and is_snapshot and path.path_steps[round_index] % along.every_steps == 0:
        return True
    return along.rounds == "all" or (along.rounds != "last" and round_index in along.rounds)
