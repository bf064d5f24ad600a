"""The evaluation stage: one student on one benchmark, k completions a problem.

A request's randomness belongs to problem, sample index and evaluation seed, not to the student: every student
answers with the same noise (common random numbers), which makes paired differences sharp.
"""

from __future__ import annotations

from typing import Any

from mot_core.artifacts import read_jsonl, write_jsonl
from mot_core.completers.base import Request
from mot_core.completers.stage import obtain_completions
from mot_core.evaluation.metrics import problem_scores, summarize
from mot_core.grading.stage import graded_rows
from mot_core.grading.verdicts import grader_named
from mot_core.runner import StepContext

GRADED = "graded.jsonl"
_KEPT = ("key", "problem_id", "sample_index", "num_tokens", "verdict", "extracted")


def evaluate_student(context: StepContext) -> dict[str, Any]:
    """Runner of `evaluation`: a graded row a completion (texts stay in their batches), metrics in the manifest."""
    spec = context.spec
    problems = read_jsonl(context.parent_dir("problems") / "problems.jsonl")
    scope = {"benchmark": "evaluation", "sampling": spec["sampling"], "seed": spec["seed"]}
    requests = [
        Request.of(scope, problem["problem_id"], problem["question"], index)
        for problem in problems
        for index in range(spec["num_samples"])
    ]
    model = {"model": student_identity(context), "subdirectory": spec.get("student_subdirectory")}
    rows, batches = obtain_completions(
        context, requests, model=model, role="student", sampling=spec["sampling"], completer=spec["completer"],
        batch_size=spec["batch_size"], max_failed_share=spec["max_failed_share"],
    )  # fmt: skip
    graded = graded_rows(grader_named(spec["grader"]), {problem["problem_id"]: problem for problem in problems}, rows)
    write_jsonl(context.work_dir / GRADED, [{name: row[name] for name in _KEPT} for row in graded])
    metrics = summarize(graded, problem_scores(graded, spec["k"]), spec["k"])
    return {**metrics, "num_tokens": sum(row["num_tokens"] for row in rows), "parts": batches}


def student_identity(context: StepContext) -> str:
    """The identity of the model that is evaluated: a parent step's, or the outside model's."""
    for role, _, identity in context.step.parent_records:
        if role == "student":
            return identity
    return str(context.spec["student"])
