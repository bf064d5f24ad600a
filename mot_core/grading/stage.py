"""The verification stage: a verdict on every rationale of a teacher."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from mot_core.completers.stage import ROWS
from mot_core.errors import GradingError
from mot_core.files import read_jsonl, write_jsonl
from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import Graded, GradeItem, Verdict
from mot_core.runner import StepContext

VERDICTS = "verdicts.jsonl"
MAX_GRADER_FAILED_SHARE = 0.05
_PROGRESS_SECONDS = 1.0

Progress = Callable[[float, float, str], None]


def grade(context: StepContext) -> dict[str, Any]:
    """Runner of `verdicts`: completions with their verdicts, in the completions' order."""
    problems = {row["problem_id"]: row for row in read_jsonl(context.parent_dir("problems") / "problems.jsonl")}
    rows = read_jsonl(context.parent_dir("completions") / ROWS)
    graded = graded_rows(
        context.spec["grader"], problems, rows, num_workers=context.settings.threads, progress=context.progress
    )
    write_jsonl(context.work_dir / VERDICTS, graded)
    return {"num_rationales": len(graded), **Counter(row["verdict"] for row in graded)}


def graded_rows(
    grader_name: str, problems: dict[str, dict[str, Any]], rows: list[dict[str, Any]], *, num_workers: int,
    progress: Progress | None = None, pool: GradingPool | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows with `family`, `verdict` and `extracted` added; times stay out, since files are compared by content. With a
    `pool`, which stays open, no workers of its own are started.

    Raises:
        GradingError: the grader broke on more than `MAX_GRADER_FAILED_SHARE` of the rows.
    """
    items = []
    for row in rows:
        problem = problems[row["problem_id"]]
        items.append(GradeItem(grader_name, problem["family"], problem["answer"], row["text"], row["finish_reason"]))
    with contextlib.nullcontext(pool) if pool is not None else GradingPool(num_workers) as judges:
        graded = judges.grade(items, _now_and_then(len(items), progress))
    _require_few_failures(grader_name, graded)
    return [
        {**row, "family": item.family, "verdict": one.verdict.value, "extracted": one.extracted}
        for row, item, one in zip(rows, items, graded, strict=True)
    ]


def _require_few_failures(grader_name: str, graded: list[Graded]) -> None:
    broken = [one for one in graded if one.verdict is Verdict.GRADER_FAILED]
    if len(broken) > MAX_GRADER_FAILED_SHARE * len(graded):
        reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(one.detail for one in broken).most_common(3))
        raise GradingError(
            f"the grader {grader_name!r} broke on {len(broken)} of {len(graded)} answers, more than the allowed share "
            f"{MAX_GRADER_FAILED_SHARE:g}: {reasons}; a broken grader must not count as wrong answers"
        )


def _now_and_then(total: int, progress: Progress | None) -> Callable[[int], None] | None:
    """Progress at most once a second, and at the end: a laboratory's answers take microseconds each."""
    if progress is None:
        return None
    last = time.monotonic()

    def on_done(done: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            progress(done, total, "answers")

    return on_done
