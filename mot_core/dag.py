"""Constructors for the experiment's steps: from specs to nodes, with nothing computed.

Each function decides what is part of a step's identity. Invariant: two calls that would give the same result
give the same identity, whichever experiment, method or round asks.
Longer than most: identity is decided in one place, so that two steps can be read side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.errors import SpecError
from mot_core.gym import gym_record
from mot_core.identity import derive_seed
from mot_core.merging.rules import rule_class
from mot_core.spec import Benchmark, Experiment, Generation, Harness, Merge, ProblemSource, Teacher
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


def problems_step(source: ProblemSource, files: Mapping[str, str], *, role: str, grader: str, label: str,
                  split: str | None = None, num_problems: int | None = None) -> Step:  # fmt: skip
    """Problems of a source, of another split or number if given. `role` is `training` or `benchmark`: rows that
    cannot serve are dropped and listed in the one, and stop the run in the other."""
    file = source.file
    table = source.record(files[file] if file is not None else None) if file or source.hub else None
    spec = {
        "families": list(source.families) if source.families is not None else None,
        "table": table,
        "import_path": source.import_path,
        "splits": dict(source.splits) if source.splits is not None else None,
        "num_problems": num_problems or source.num_problems,
        "split": split or source.split,
        "seed": source.seed,
        "role": role,
        "grader": grader,
    }
    if source.gym is not None:
        spec["gym"] = gym_record(source.gym)
    locators = {"file": file} if file is not None else {}
    return Step("problems", spec, label=label, facts={"stage": "problems"}, locators=locators)


def overlap_step(spec: Experiment, world: World) -> Step:
    """The search for problems to train on that a benchmark of the spec holds, on dev or on test."""
    drawn = problems_step(
        spec.problems, world.files, role="training", grader=spec.corpus.grader, label="problems to train on"
    )
    held = {
        f"{benchmark.name} ({on})": benchmark_problems_step(spec, world, benchmark, on=on)
        for benchmark in spec.evaluation.benchmarks
        for on in (("dev", "test") if benchmark.has_dev else ("test",))
    }
    rule = spec.corpus.decontamination
    return Step(
        "overlap",
        {"ngram": rule.ngram, "on_hit": rule.on_hit, "benchmarks": list(held)},
        (("problems", drawn), *((f"benchmark/{index}", step) for index, step in enumerate(held.values()))),
        label="problems that a benchmark holds",
        facts={"stage": "problems"},
    )


def training_problems_step(overlap: Step, removed: Sequence[str]) -> Step:
    """The problems to train on, without those that a benchmark holds. Which those are enters identity, and not which
    benchmarks were asked: where none is held, these are the drawn problems themselves."""
    drawn = overlap.parent("problems")
    if not removed:
        return drawn
    return Step(
        "training-problems",
        {"removed": sorted(removed)},
        (("problems", drawn),),
        label="problems that no benchmark holds",
        facts={"stage": "problems"},
    )


def completions_step(
    generation: Generation, teacher: Teacher, model: ModelRef, problems: Step, *, name: str,
    num_samples: int | None = None,
) -> Step:  # fmt: skip
    """A teacher's rationales on problems. Nothing of students or training enters: teachers are paid for once."""
    return Step(
        "completions",
        {
            "teacher": _asked(teacher, model),
            "completer": teacher.completer,
            "sampling": generation.sampling_of(teacher).record(),
            "num_samples": num_samples or generation.samples_of(teacher),
            "seed": generation.seed,
            "batch_size": generation.batch_size,
            "max_failed_share": generation.max_failed_share,
        },
        (("problems", problems),),
        label=f"generate {name}",
        facts={"stage": "generation", "teacher": name},
        locators=_locators("teacher", teacher, model),
    )


def _asked(teacher: Teacher, model: ModelRef) -> dict[str, Any]:
    """Who is asked, and what changes its answers. What is absent leaves no trace: requests keep their keys when the
    spec gains fields."""
    changing = {
        "system": teacher.system,
        "template_kwargs": dict(teacher.template_kwargs),
        "engine": teacher.engine.record() if teacher.engine is not None else {},
        "extra_body": dict(teacher.endpoint.extra_body) if teacher.endpoint is not None else {},
    }
    return {"model": model.identity, **{key: value for key, value in changing.items() if value}}


def _locators(role: str, teacher: Teacher, model: ModelRef) -> dict[str, Any]:
    settings = teacher.settings()
    if teacher.rationales is not None:
        settings["identity"] = model.identity  # so that the completer can refuse files that changed since
    return {role: model.locator, f"{role}_revision": model.revision, f"{role}_settings": settings}


def verdicts_step(grader: str, problems: Step, completions: Step, *, name: str) -> Step:
    """Verdicts on a teacher's rationales."""
    return Step(
        "verdicts",
        {"grader": grader},
        (("problems", problems), ("completions", completions)),
        label=f"verify {name}",
        facts={"stage": "verification", "teacher": name},
    )


def judgements_step(
    generation: Generation, judge: Teacher, model: ModelRef, problems: Step, verdicts: Step, *, name: str
) -> Step:
    """A second opinion on a teacher's verdicts, by another model."""
    return Step(
        "judgements",
        {
            "judge": _asked(judge, model),
            "completer": judge.completer,
            "sampling": generation.sampling_of(judge).record(),
            "seed": generation.seed,
            "batch_size": generation.batch_size,
            "max_failed_share": generation.max_failed_share,
        },
        (("problems", problems), ("verdicts", verdicts)),
        label=f"judge the verdicts on {name}",
        facts={"stage": "verification", "teacher": name},
        locators=_locators("judge", judge, model),
    )


def corpora_step(
    spec: Experiment, world: World, problems: Step, verdicts: Mapping[str, Step], difficulty: Step | None = None
) -> Step:
    """One corpus a teacher, from every teacher's verdicts."""
    corpus = spec.corpus
    record: dict[str, Any] = {
        "mode": corpus.mode,
        "match_over": list(corpus.match_over or verdicts),
        "num_rationales": corpus.num_rationales,
        "rationales_per_problem": corpus.rationales_per_problem,
        "selection_seed": corpus.selection_seed,
        "choice": corpus.choice,
        "filter_correct": corpus.filter_correct,
        "licenses": {
            "teachers": {teacher.name: teacher.license for teacher in spec.teachers}, "problems": spec.problems.license
        },
    }  # fmt: skip
    if corpus.max_rationale_tokens is not None:
        record["max_rationale_tokens"] = corpus.max_rationale_tokens
    # A rationale must fit the template of whoever is trained on it; students that share one share corpora.
    record["student_tokenizer"] = world.student_tokenizer
    if corpus.choice == "likeliest":
        record["student"] = world.student.identity
    locators = {"student": world.student.locator, "student_revision": world.student.revision}
    parents = [("problems", problems), *((f"verdicts/{name}", step) for name, step in verdicts.items())]
    if difficulty is not None and corpus.difficulty is not None:
        record["difficulty"] = list(corpus.difficulty)
        parents.append(("difficulty", difficulty))
    return Step("corpora", record, tuple(parents), label="build corpora", facts={"stage": "corpora"}, locators=locators)


def shuffled_corpora_step(corpora: Step, teachers: list[str], seed: int, num_parts: int | None = None) -> Step:
    """The union of the teachers' corpora, split at random into parts; absent: as many as there are teachers."""
    spec: dict[str, Any] = {"teachers": teachers, "seed": derive_seed("shuffled", seed)}
    if num_parts not in (None, len(teachers)):
        spec["num_parts"] = num_parts
    return Step(
        "shuffled-corpora",
        spec,
        (("corpora", corpora),),
        label=f"shuffle {', '.join(teachers) if num_parts else 'corpora'}, seed {seed}",
        facts={"stage": "corpora", "seed": seed},
    )


def branch_step(
    spec: Experiment, student: StudentAt, corpora: Step, names: list[str], *, learning_rate: float, seed: int,
    first_step: int, num_steps: int, total_steps: int, snapshot_steps: list[int], label: str, facts: Mapping[str, Any],
) -> Step:  # fmt: skip
    """SFT of a student on one corpus or the union of several. The order of data depends on seed and place in
    the path, not on the corpus: matched branches see the same problems in the same order."""
    training, last_step = spec.training, first_step + num_steps
    student_spec, student_parent, locators = student.bind()
    record: dict[str, Any] = {
        **student_spec,
        "corpora": names,
        "training": {**training.record(), "learning_rate": learning_rate},
        "order_seed": derive_seed("branch", seed, first_step),
        "first_step": first_step,
        "num_steps": num_steps,
        "total_steps": total_steps,
        "snapshot_steps": snapshot_steps,
    }
    parents = [*student_parent, ("corpora", corpora)]
    # What sets rounds apart is said only of branches that are a round, and only where it changes their result.
    rate_varies = training.schedule != "constant" or training.warmup_steps > 0
    if num_steps < total_steps and training.schedule_over == "round" and rate_varies:
        record["schedule_over"] = "round"
    if training.optimizer_between_rounds != "reset":
        if last_step < total_steps:
            record["keeps_optimizer"] = True
        if first_step > 0:
            weighted = _optimizers(student, names, training.optimizer_between_rounds, label)
            record["optimizer_weights"] = [weight for weight, _ in weighted]
            parents += [(f"optimizer/{index}", step) for index, (_, step) in enumerate(weighted)]
    return Step(
        "branch",
        record,
        tuple(parents),
        label=label,
        facts={"stage": "training", "seed": seed, **facts},
        locators={**locators, "layout": training.layout_record()},
    )


def on_policy_step(
    spec: Experiment, world: World, student: StudentAt, problems: Step, teachers: Sequence[str], *, learning_rate: float,
    seed: int, first_step: int, num_steps: int, snapshot_steps: list[int], label: str, facts: Mapping[str, Any],
) -> Step:  # fmt: skip
    """A student trained on what it writes to problems' questions, towards the distributions of teachers. These stand in the
    order of their identities, so that naming them otherwise changes nothing; what `training` says of long rationales has no
    meaning here and leaves no trace. `first_step` counts the steps before it on the path; the schedule is over its own."""
    training, settings = spec.training, spec.on_policy
    student_spec, student_parent, locators = student.bind()
    models = sorted(((name, world.models[name]) for name in teachers), key=lambda one: one[1].identity)
    record = {key: value for key, value in training.record().items() if key not in ("max_example_tokens", "too_long")}
    return Step(
        "on-policy",
        {
            **student_spec,
            "teachers": [model.identity for _, model in models],
            "on_policy": {
                **settings.model_dump(mode="json"),
                "max_completion_tokens": settings.max_completion_tokens
                or spec.generation.sampling.max_completion_tokens,
            },
            "training": {**record, "learning_rate": learning_rate},
            "order_seed": derive_seed("on-policy", seed, first_step),
            "first_step": first_step,
            "num_steps": num_steps,
            "snapshot_steps": snapshot_steps,
        },
        (*student_parent, ("problems", problems)),
        label=label,
        facts={"stage": "training", "seed": seed, **facts},
        locators={
            **locators,
            "teachers": [[name, model.locator, model.revision] for name, model in models],
            "layout": {**training.layout_record(), "layout": "padded", "loss": "full"},
        },
    )


def _optimizers(student: StudentAt, names: list[str], between_rounds: str, label: str) -> list[tuple[float, Step]]:
    """The branches of the round before whose moments a branch starts from, and their weights.

    `carry`: the one on the same corpora. `average`: all, weighted as in the merge where that names numbers.
    """
    source = student.source
    if isinstance(source, ModelRef) or student.subdirectory is not None:
        before: list[Step] = []
    elif source.kind == "branch":
        before = [source]
    else:
        before = [step for role, step in source.parents if role.startswith("branch/")]
    kept = [step for step in before if step.spec.get("keeps_optimizer")]
    if between_rounds == "carry":
        kept = [step for step in kept if step.spec["corpora"] == names][:1]
    if not kept:
        raise SpecError(
            f"{label}: optimizer_between_rounds is {between_rounds!r}, but the round before left no optimizer state for "
            f"corpora {names}; use 'reset', or let a method branch on the same corpora each round"
        )
    weights = source.spec.get("weights") if isinstance(source, Step) else None
    if between_rounds == "carry" or not isinstance(weights, list) or len(weights) != len(kept):
        weights = [1.0 / len(kept)] * len(kept)
    return list(zip(weights, kept, strict=True))


def merge_step(
    spec: Experiment, start: StudentAt, branches: Mapping[str, Step], *, label: str, facts: Mapping[str, Any],
    round_index: int = 1, seed: int = 0, previous: Step | None = None, corpora: Step | None = None,
    corpus_names: Sequence[str] = (), qualities: Mapping[str, Step] | None = None, merge: Merge | None = None,
) -> Step:  # fmt: skip
    """Branches of one start merged into the next student, as the spec's merge says or another one that is given. Parents stand in the order of their identities, so that
    naming branches otherwise changes nothing. What a rule does not use leaves no trace: `seed` of a rule that draws,
    `previous` (the merge of the round before) of one that keeps state, `corpora` where a barrier is measured,
    `qualities` (a verdicts step a branch) where weights follow accuracy."""
    merge = merge or spec.merge
    rule = rule_class(merge.rule)
    student_spec, student_parent, locators = start.bind()
    weights = merge.weights_at(round_index)
    ordered = sorted(branches.items(), key=lambda item: item[1].identity)
    record: dict[str, Any] = {
        **student_spec,
        "rule": merge.rule,
        "weights": merge.weights_by
        or [weights[name] if weights is not None else 1.0 / len(branches) for name, _ in ordered],
    }
    parents = [*student_parent, *((f"branch/{name}", step) for name, step in ordered)]
    if merge.parameters:
        record["parameters"] = merge.parameters_at(round_index)
    if rule.draws:
        record["seed"] = derive_seed("merge", merge.seed, seed, round_index)
    if rule.keeps_state and previous is not None:
        parents.append(("previous", previous))
    if merge.weights_by is not None:
        if qualities is None:
            raise SpecError(f"{label}: merge.weights_by needs qualities, a verdicts step a branch")
        parents += [(f"quality/{name}", qualities[name]) for name, _ in ordered]
    if merge.barrier is not None:
        if corpora is None:
            raise SpecError(f"{label}: merge.barrier needs corpora, and corpus_names to say which of them")
        record["barrier"] = {
            **merge.barrier.model_dump(mode="json"),
            "corpora": sorted(corpus_names),
            "max_example_tokens": spec.training.max_example_tokens,
        }
        parents.append(("corpora", corpora))
    return Step("merge", record, tuple(parents), label=label, facts={"stage": "merging", **facts}, locators=locators)


def benchmark_problems_step(spec: Experiment, world: World, benchmark: Benchmark, *, on: str) -> Step:
    """A benchmark's problems: `on='test'` as the benchmark says, `on='dev'` as `evaluation.path` says."""
    return problems_step(
        benchmark, world.files, role="benchmark", grader=benchmark.grader, split="dev" if on == "dev" else benchmark.split,
        num_problems=spec.evaluation.path.num_problems if on == "dev" else benchmark.num_problems,
        label=f"problems of {benchmark.name}, {on}",
    )  # fmt: skip


def evaluation_step(
    spec: Experiment, world: World, benchmark: Benchmark, student: StudentAt, *, on: str, label: str,
    facts: Mapping[str, Any],
) -> Step:  # fmt: skip
    """A student on a benchmark: `on='test'` as the benchmark says, `on='dev'` as `evaluation.path` says."""
    evaluation = spec.evaluation
    engine = evaluation.engine
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
            "sampling": benchmark.sampling.record(),
            "grader": benchmark.grader,
            "completer": evaluation.completer,
            "seed": evaluation.seed,
            "batch_size": evaluation.batch_size,
            "max_failed_share": evaluation.max_failed_share,
            **({"engine": engine.record()} if engine is not None else {}),
            **({"prompt": benchmark.prompt} if benchmark.prompt is not None else {}),
            **({"system": benchmark.system} if benchmark.system is not None else {}),
        },
        (("problems", problems), *student_parent),
        label=label,
        facts={"stage": "evaluation", "benchmark": benchmark.name, "split": on, **facts},
        locators={**locators, **({"student_settings": engine.model_dump(mode="json")} if engine is not None else {})},
    )


def harness_step(world: World, entry: Harness, student: StudentAt, *, label: str, facts: Mapping[str, Any]) -> Step:
    """What lm-evaluation-harness measures of a student. Its version enters, since tasks' definitions belong to it, and of a
    folder of tasks the content; the entry's name, role and metric only say what tables make of the results."""
    student_spec, student_parent, locators = student.bind()
    spec = entry.model_dump(mode="json", exclude={"name", "role", "metric"})
    if entry.include_path is not None:
        spec["include_path"] = world.files[entry.include_path]
        locators = {**locators, "include_path": str(Path(entry.include_path).expanduser().absolute())}
    return Step(
        "harness",
        {**student_spec, **spec, "lm_eval": world.lm_eval},
        student_parent,
        label=label,
        facts={"stage": "evaluation", "benchmark": entry.name, "split": "test", **facts},
        locators=locators,
    )


def path_snapshots(spec: Experiment, method: str) -> list[int]:
    """The optimizer steps inside a full-length branch at which a student is kept for evaluation."""
    along = spec.evaluation.path
    followed = along.methods is None or method in along.methods
    wanted = range(1, spec.rounds) if along.rounds == "all" else () if along.rounds == "last" else along.rounds
    wanted = wanted if followed else ()
    last = spec.rounds * spec.steps_per_round
    kept = {r * spec.steps_per_round for r in (*wanted, spec.final_round) if isinstance(r, int)}
    if along.every_steps is not None and followed:
        kept |= set(range(along.every_steps, last, along.every_steps))
    return [step for step in sorted(kept) if step < last]


def round_at(spec: Experiment, step: int) -> float:
    """Where on the axis of rounds an optimizer step of a path lies: a whole number (an int) at a round's boundary."""
    rounds, inside = divmod(step, spec.steps_per_round)
    return rounds if inside == 0 else step / spec.steps_per_round
