"""The verification stage: a verdict on every rationale of a teacher."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mot_core.artifacts import read_jsonl, write_jsonl
from mot_core.completers.stage import ROWS
from mot_core.errors import GradingError
from mot_core.grading.verdicts import Grader, Verdict, grade_rationale, grader_named
from mot_core.runner import StepContext

VERDICTS = "verdicts.jsonl"
MAX_GRADER_FAILED_SHARE = 0.05


def grade(context: StepContext) -> dict[str, Any]:
    """Runner of `verdicts`: completions with their verdicts, in the completions' order."""
    problems = {row["problem_id"]: row for row in read_jsonl(context.parent_dir("problems") / "problems.jsonl")}
    rows = read_jsonl(context.parent_dir("completions") / ROWS)
    graded = graded_rows(grader_named(context.spec["grader"]), problems, rows)
    write_jsonl(context.work_dir / VERDICTS, graded)
    return {"num_rationales": len(graded), **Counter(row["verdict"] for row in graded)}


def graded_rows(
    grader: Grader, problems: dict[str, dict[str, Any]], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows with `verdict` and `extracted` added.

    Raises:
        GradingError: the grader broke on more than `MAX_GRADER_FAILED_SHARE` of the rows.
    """
    out = []
    for row in rows:
        problem = problems[row["problem_id"]]
        graded = grade_rationale(grader, problem["family"], problem["answer"], row["text"], row["finish_reason"])
        out.append({**row, "family": problem["family"], "verdict": graded.verdict.value, "extracted": graded.extracted})
    broken = sum(row["verdict"] == Verdict.GRADER_FAILED for row in out)
    if broken > MAX_GRADER_FAILED_SHARE * len(out):
        raise GradingError(
            f"the grader broke on {broken} of {len(out)} answers, more than the allowed share "
            f"{MAX_GRADER_FAILED_SHARE:g}; a broken grader must not count as wrong answers"
        )
    return out
