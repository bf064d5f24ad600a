"""Scores by hand: avg@k, pass@k, maj@k, shares of failure, and the ensemble's votes."""

from __future__ import annotations

from typing import Any

import pytest

from mot_core.evaluation.ensemble import ensemble_rows
from mot_core.evaluation.metrics import problem_scores, summarize


def rows(problem_id: str, answers: str, gold: str) -> list[dict[str, Any]]:
    """Graded rows from one letter a sample: an answer, `-` for unparseable, `.` for truncated, `!` for a broken grader."""
    failures = {"-": "unparseable", ".": "truncated", "!": "grader_failed"}
    return [
        {
            "problem_id": problem_id, "sample_index": index, "num_tokens": 10 + index,
            "verdict": failures.get(letter, "correct" if letter == gold else "incorrect"),
            "extracted": None if letter in "-." else letter,
        }
        for index, letter in enumerate(answers)
    ]  # fmt: skip


# Four samples each, gold 'a'; k = 2 looks at the first two.
GRADED = [*rows("p", "aabb", "a"), *rows("q", "baaa", "a"), *rows("r", "--.!", "a")]


def test_scores_of_each_problem() -> None:
    scores = problem_scores(GRADED, 2)
    assert [score["problem_id"] for score in scores] == ["p", "q", "r"]
    assert [(s["num_correct"], s["num_samples"], s["correct_of_all"], s["all_samples"]) for s in scores] == [
        (2, 2, 2, 4), (1, 2, 3, 4), (0, 2, 0, 4),
    ]  # fmt: skip
    # q's first two samples tie between b and a; the first answer given wins.
    assert [score["majority_correct"] for score in scores] == [True, False, False]
    assert [score["majority_correct"] for score in problem_scores(GRADED, 4)] == [True, True, False]


def test_rows_may_come_in_any_order() -> None:
    by_id = lambda scores: {score["problem_id"]: score for score in scores}  # noqa: E731
    assert by_id(problem_scores(GRADED[::-1], 2)) == by_id(problem_scores(GRADED, 2))


def test_the_benchmarks_metrics() -> None:
    found = summarize(GRADED, problem_scores(GRADED, 2), 2)
    assert found == {
        "k": 2, "num_problems": 3, "avg_at_k": pytest.approx((1.0 + 0.5 + 0.0) / 3),
        # 1 − C(wrong, 2) / C(4, 2): p has 2 wrong of 4, q 1, r 4.
        "pass_at_k": pytest.approx(((1 - 1 / 6) + 1.0 + 0.0) / 3), "maj_at_k": pytest.approx(1 / 3),
        "mean_completion_tokens": 11.5, "truncated_share": pytest.approx(1 / 12),
        "unparseable_share": pytest.approx(2 / 12), "failed_share": pytest.approx(1 / 12),
    }  # fmt: skip


def test_the_ensembles_votes() -> None:
    students = [rows("p", "ab-", "a"), rows("p", "bb-", "a"), rows("p", "a.-", "a")]
    votes = ensemble_rows(students)
    assert [(vote["sample_index"], vote["extracted"], vote["verdict"], vote["num_tokens"]) for vote in votes] == [
        (0, "a", "correct", 30), (1, "b", "incorrect", 33), (2, None, "unparseable", 36),
    ]  # fmt: skip


def test_a_tied_vote_goes_to_the_first_teacher() -> None:
    assert [vote["extracted"] for vote in ensemble_rows([rows("p", "b", "a"), rows("p", "a", "a")])] == ["b"]
    assert [vote["extracted"] for vote in ensemble_rows([rows("p", "a", "a"), rows("p", "b", "a")])] == ["a"]
