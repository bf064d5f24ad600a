"""Scores of one student on one benchmark, from graded rows.

avg@k is the mean over problems of the share of the first k samples that are right; pass@k is the unbiased
estimate from all samples (Chen et al. 2021, arXiv 2107.03374); maj@k is whether the majority answer of the first
k is right. A truncated, unparseable or ungradable sample is not right, and is counted apart as well.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from mot_core.evaluation.statistics import majority_vote, pass_at_k, standard_error
from mot_core.grading.verdicts import Verdict


def problem_scores(graded: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """One row a problem, in first-seen order: right ones among the first k, and among all samples."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in graded:
        grouped.setdefault(row["problem_id"], []).append(row)
    scores = []
    for problem_id, rows in grouped.items():
        rows = sorted(rows, key=lambda row: int(row["sample_index"]))
        first_k = rows[:k]
        right = {row["extracted"] for row in rows if row["verdict"] == Verdict.CORRECT}
        scores.append(
            {
                "problem_id": problem_id,
                "num_correct": sum(row["verdict"] == Verdict.CORRECT for row in first_k),
                "num_samples": len(first_k),
                "correct_of_all": sum(row["verdict"] == Verdict.CORRECT for row in rows),
                "all_samples": len(rows),
                "majority_correct": majority_vote([row["extracted"] for row in first_k]) in right,
                # By sample index: equal indices of two students met the same noise, so that they pair.
                "outcomes": tuple(row["verdict"] == Verdict.CORRECT for row in first_k),
            }
        )
    return scores


def summarize(graded: list[dict[str, Any]], scores: list[dict[str, Any]], k: int) -> dict[str, Any]:
    """The benchmark's metrics; shares and scores lie in [0, 1], tokens are counted with the end token."""
    verdicts = Counter(row["verdict"] for row in graded)
    total = len(graded)
    num_samples = scores[0]["all_samples"]
    return {
        "k": k,
        "num_problems": len(scores),
        "avg_at_k": float(np.mean([score["num_correct"] / score["num_samples"] for score in scores])),
        "pass_at_k": float(np.mean(pass_at_k(np.array([s["correct_of_all"] for s in scores]), num_samples, k))),
        "maj_at_k": float(np.mean([score["majority_correct"] for score in scores])),
        "mean_completion_tokens": sum(row["num_tokens"] for row in graded) / total,
        "truncated_share": verdicts[Verdict.TRUNCATED] / total,
        "unparseable_share": verdicts[Verdict.UNPARSEABLE] / total,
        "failed_share": verdicts[Verdict.GRADER_FAILED] / total,
    }


def standard_error_over_problems(scores: list[dict[str, Any]]) -> float | None:
    """The standard error of avg@k over problems, from rows of `problem_scores`: s / √n, with s the sample deviation of
    each problem's share of right samples. It holds the choice of problems and the noise of k samples, both. None for one
    problem (Miller 2024, arXiv 2411.00640)."""
    return standard_error([score["num_correct"] / score["num_samples"] for score in scores])
