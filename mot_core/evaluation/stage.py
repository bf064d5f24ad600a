"""The evaluation stage: one student on one benchmark, k completions a problem.

A request's randomness belongs to problem, sample index and evaluation seed, not to the student: every student
answers with the same noise (common random numbers), which makes paired differences sharp. A journal belongs to the
content of the weights, not to the step that made them: equal weights are never asked twice.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from mot_core.completers.base import Request
from mot_core.completers.stage import ROWS, Ask, obtain_completions
from mot_core.evaluation.metrics import problem_scores, summarize
from mot_core.files import read_jsonl, write_jsonl
from mot_core.grading.stage import graded_rows
from mot_core.prompts import asked_question
from mot_core.runner import StepContext
from mot_core.world import content_of

GRADED = "graded.jsonl"
# What a merge publishes beside its model, and a directory copied from a store does not hold.
_NOT_THE_MODEL = ("diagnostics.json",)
_KEPT = ("key", "problem_id", "sample_index", "num_tokens", "verdict", "extracted")


def evaluate_student(context: StepContext) -> dict[str, Any]:
    """Runner of `evaluation`: the completions, a graded row for each, and metrics in the manifest."""
    spec = context.spec
    problems = read_jsonl(context.parent_dir("problems") / "problems.jsonl")
    system = {"system": spec["system"]} if "system" in spec else {}
    scope = {"benchmark": "evaluation", "sampling": spec["sampling"], "seed": spec["seed"], **system}
    requests = [
        Request.of(scope, problem["problem_id"], asked_question(spec.get("prompt"), problem["question"]), index)
        for problem in problems
        for index in range(spec["num_samples"])
    ]
    # `subdirectory` is where a snapshot lay; by content it says nothing, but the scopes of journals have it.
    model = {"model": student_content(context), "subdirectory": None}
    if spec.get("engine"):
        model["engine"] = spec["engine"]
    model |= system
    completions, counts = obtain_completions(context, requests, Ask.of("student", model, spec))
    rows = [completion.published() for completion in completions]
    write_jsonl(context.work_dir / ROWS, rows)
    by_id = {problem["problem_id"]: problem for problem in problems}
    graded = graded_rows(spec["grader"], by_id, rows, num_workers=context.settings.threads)
    write_jsonl(context.work_dir / GRADED, [{name: row[name] for name in _KEPT} for row in graded])
    return {**counts, **summarize(graded, problem_scores(graded, spec["k"]), spec["k"])}


def student_content(context: StepContext) -> str:
    """What the student is that is evaluated: the hash of its files, as `mot_core.world.content_identity` takes it of a
    directory, so that a student copied out of a store is the same one. Of a step's student the manifest knows the files'
    hashes; none is read again. An outside model's identity is its content already (or hub id and revision).
    """
    for role, _, identity in context.step.parent_records:
        if role == "student":
            manifest = context.store.manifest(identity)
            assert manifest is not None, f"the student's step {identity} must be published before its evaluation"
            place = PurePosixPath(context.spec.get("student_subdirectory") or ".")
            return content_of(
                (PurePosixPath(name).name, facts["sha256"])
                for name, facts in manifest.files.items()
                if PurePosixPath(name).parent == place and PurePosixPath(name).name not in _NOT_THE_MODEL
            )
    return str(context.spec["student"])
