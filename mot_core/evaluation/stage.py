"""The evaluation stage: one student on one benchmark, k completions a problem.

A request's randomness belongs to problem, sample index and evaluation seed, not to the student: every student
answers with the same noise (common random numbers), which makes paired differences sharp.
"""

from __future__ import annotations

from typing import Any

from mot_core.completers.base import Request
from mot_core.completers.stage import ROWS, Ask, obtain_completions
from mot_core.evaluation.metrics import problem_scores, summarize
from mot_core.files import read_jsonl, write_jsonl
from mot_core.grading.stage import graded_rows
from mot_core.runner import StepContext

GRADED = "graded.jsonl"
_KEPT = ("key", "problem_id", "sample_index", "num_tokens", "verdict", "extracted")


def evaluate_student(context: StepContext) -> dict[str, Any]:
    """Runner of `evaluation`: the completions, a graded row for each, and metrics in the manifest."""
    spec = context.spec
    problems = read_jsonl(context.parent_dir("problems") / "problems.jsonl")
    scope = {"benchmark": "evaluation", "sampling": spec["sampling"], "seed": spec["seed"]}
    requests = [
        Request.of(scope, problem["problem_id"], problem["question"], index)
        for problem in problems
        for index in range(spec["num_samples"])
    ]
    model = {"model": student_identity(context), "subdirectory": spec.get("student_subdirectory")}
    if spec.get("engine"):
        model["engine"] = spec["engine"]
    completions, counts = obtain_completions(context, requests, Ask.of("student", model, spec))
    rows = [completion.published() for completion in completions]
    write_jsonl(context.work_dir / ROWS, rows)
    by_id = {problem["problem_id"]: problem for problem in problems}
    graded = graded_rows(spec["grader"], by_id, rows, num_workers=context.settings.threads)
    write_jsonl(context.work_dir / GRADED, [{name: row[name] for name in _KEPT} for row in graded])
    return {**counts, **summarize(graded, problem_scores(graded, spec["k"]), spec["k"])}


def student_identity(context: StepContext) -> str:
    """The identity of the model that is evaluated: a parent step's, or the outside model's."""
    for role, _, identity in context.step.parent_records:
        if role == "student":
            return identity
    return str(context.spec["student"])
