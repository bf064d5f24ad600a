"""The second opinion: another model is asked whether each extracted answer is right; verdicts stay as they are.

What it is for is the rate at which the two disagree: a high one says that grader or gold answers deserve a look.
"""

from __future__ import annotations

from typing import Any

from mot_core.completers.base import Request
from mot_core.completers.stage import Ask, obtain_completions
from mot_core.files import read_jsonl, write_jsonl
from mot_core.grading.judge import disagreement, judge_prompt, parse_reply
from mot_core.grading.stage import VERDICTS
from mot_core.runner import StepContext

JUDGEMENTS = "judgements.jsonl"


def judge(context: StepContext) -> dict[str, Any]:
    """Runner of `judgements`: a row for every verdict that an answer could be extracted for."""
    spec = context.spec
    problems = {row["problem_id"]: row for row in read_jsonl(context.parent_dir("problems") / "problems.jsonl")}
    verdicts = [row for row in read_jsonl(context.parent_dir("verdicts") / VERDICTS) if row["extracted"] is not None]
    scope = {name: spec[name] for name in ("judge", "sampling", "seed", "completer")}
    # By the question to the judge, so that equal answers of several teachers to one problem are judged once.
    requests = {
        row["key"]: Request.of(
            scope, row["problem_id"],
            judge_prompt(problems[row["problem_id"]]["question"], problems[row["problem_id"]]["answer"], row["extracted"]), 0,
        )
        for row in verdicts
    }  # fmt: skip
    unique = list({request.key: request for request in requests.values()}.values())
    completions, counts = obtain_completions(context, unique, Ask.of("judge", spec["judge"], spec))
    replies = {completion.key: completion for completion in completions}
    rows = [
        {"key": row["key"], "problem_id": row["problem_id"], "verdict": row["verdict"],
         "judgement": parse_reply(replies[requests[row["key"]].key].text)}
        for row in verdicts
    ]  # fmt: skip
    write_jsonl(context.work_dir / JUDGEMENTS, rows)
    return {**counts, **disagreement(verdicts, [row["judgement"] for row in rows])}
