"""Scores by hand: avg@k, pass@k, maj@k, shares of failure, and the ensemble's votes."""

from __future__ import annotations

from typing import Any

import pytest

from mot_core.comparison import comparison_rows
from mot_core.evaluation.ensemble import ensemble_rows
from mot_core.evaluation.metrics import problem_scores, standard_error_over_problems, summarize


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


def test_the_standard_error_over_problems_by_hand() -> None:
    # Shares 1, 1/2, 0: their sample deviation is 1/2, over the root of 3.
    assert standard_error_over_problems(problem_scores(GRADED, 2)) == pytest.approx(0.5 / 3**0.5)
    assert standard_error_over_problems(problem_scores(rows("p", "ab", "a"), 2)) is None


def test_outcomes_stand_in_the_order_of_sample_indices() -> None:
    assert [score["outcomes"] for score in problem_scores(GRADED[::-1], 4)][::-1] == [
        (True, True, False, False), (False, True, True, True), (False, False, False, False),
    ]  # fmt: skip


def table_of(answers: dict[str, list[str]], seeds: int, k: int) -> list[dict[str, Any]]:
    """Rows of `problem_scores` on test: a letter a sample, a text a problem, the same for each seed."""
    return [
        {
            "budget": "matched_path", "method": method, "seed": seed, "round": 1, "is_final": True, "benchmark": "sums",
            "split": "test", **score,
        }
        for method, texts in answers.items()
        for seed in range(seeds)
        for score in problem_scores([row for i, text in enumerate(texts) for row in rows(f"p{i}", text, "a")], k)
    ]  # fmt: skip


@pytest.mark.parametrize(("seeds", "k", "test"), [(1, 1, "mcnemar"), (2, 1, "permutation"), (1, 2, "permutation")])
def test_one_answer_a_problem_is_compared_by_mcnemar(seeds: int, k: int, test: str) -> None:
    answers = {"mot": ["aa"] * 9 + ["ba"], "base": ["bb"] * 7 + ["aa"] * 3}
    (row,) = comparison_rows(table_of(answers, seeds, k), {}, 200)
    assert (row["a"], row["b"], row["test"], row["num_seeds"], row["num_samples"]) == ("mot", "base", test, seeds, k)
    if test == "mcnemar":
        # Seven won and one lost: 2 (1 + 8) / 256.
        assert row["p_value"] == row["p_value_holm"] == pytest.approx(18 / 256)
        assert row["sampling_share"] is None
    assert row["detectable"] == pytest.approx(2.8016 * row["sd"] / 10**0.5, rel=1e-4)
    assert row["problems_needed"] == pytest.approx((2.8016 * row["sd"] / 0.03) ** 2, abs=1.5)


def test_common_samples_are_paired_before_their_noise_is_measured() -> None:
    """Both students are right on the same one of two samples: the difference has no noise, though each score has."""
    answers = {"mot": ["aa"] * 5 + ["aa"] * 5 + ["ab"] * 5, "base": ["bb"] * 5 + ["ab"] * 5 + ["ab"] * 5}
    (row,) = comparison_rows(table_of(answers, 1, 2), {}, 200)
    # Five differences of 1, 1/2 and 0 each; only the middle ones are of samples that differ, by 0 and 1: variance 1/2.
    assert row["delta"] == 0.5
    assert row["sampling_share"] == pytest.approx((5 / 15 * 0.5 / 2) / (2.5 / 14))


def test_the_ensembles_votes() -> None:
    students = [rows("p", "ab-", "a"), rows("p", "bb-", "a"), rows("p", "a.-", "a")]
    votes = ensemble_rows(students)
    assert [(vote["sample_index"], vote["extracted"], vote["verdict"], vote["num_tokens"]) for vote in votes] == [
        (0, "a", "correct", 30), (1, "b", "incorrect", 33), (2, None, "unparseable", 36),
    ]  # fmt: skip


def test_a_tied_vote_goes_to_the_first_teacher() -> None:
    assert [vote["extracted"] for vote in ensemble_rows([rows("p", "b", "a"), rows("p", "a", "a")])] == ["b"]
    assert [vote["extracted"] for vote in ensemble_rows([rows("p", "a", "a"), rows("p", "b", "a")])] == ["a"]
