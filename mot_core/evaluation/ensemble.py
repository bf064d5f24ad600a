"""The output-level ensemble: vote i over each STD student's i-th sample (the reviewers' baseline, paper.md).

k votes a problem; ties go to the first teacher in spec order. Nothing is sampled for it, but at inference it
costs as many completions a vote as there are students.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mot_core.evaluation.statistics import majority_vote
from mot_core.grading.verdicts import Verdict


def voters_of(index: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The final STD students of a run's index that vote together, one a teacher in spec order: by budget and seed; none
    if the run has no ensemble."""
    if not any(method["name"] == "ensemble" for method in index["spec"]["methods"]):
        return
    order = [f"std/{teacher['name']}" for teacher in index["spec"]["teachers"]]
    groups: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for student in index["students"]:
        if student["is_final"] and student["method"] in order:
            groups.setdefault((student["budget"], student["seed"]), {})[student["method"]] = student
    for members in groups.values():
        yield [members[label] for label in order]


def ensemble_rows(graded_by_student: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Graded rows of the vote, one a problem and sample index; students stand in spec order of their teachers.

    A vote's verdict is that of the answers it chose; if no student answered, it is unparseable.
    """
    by_key = [{(row["problem_id"], row["sample_index"]): row for row in rows} for rows in graded_by_student]
    votes = []
    for key in by_key[0]:
        ballots = [rows[key] for rows in by_key]
        chosen = majority_vote([ballot["extracted"] for ballot in ballots])
        if chosen is None:
            verdict = Verdict.UNPARSEABLE.value
        else:
            verdict = next(ballot["verdict"] for ballot in ballots if ballot["extracted"] == chosen)
        votes.append(
            {
                "problem_id": key[0],
                "sample_index": key[1],
                "num_tokens": sum(ballot["num_tokens"] for ballot in ballots),
                "verdict": verdict,
                "extracted": chosen,
            }
        )
    return votes
