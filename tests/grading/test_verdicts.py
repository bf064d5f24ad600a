"""Verdicts: which answer decides, and failure that is never a wrong answer."""

from __future__ import annotations

from typing import Any

import pytest

from mot_core.errors import GradingError
from mot_core.grading.stage import graded_rows
from mot_core.grading.verdicts import (
    Graded,
    Verdict,
    boxed_answer,
    grade_rationale,
    grader_named,
    same_integer,
    same_text,
)  # fmt: skip


def broken(family: str, gold: str, answer: str) -> bool:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{3}", "3"),
        ("\\boxed{1} or \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{a{b{c}d}e} tail }", "a{b{c}d}e"),
        ("\\boxed{ 7 }", "7"),
        ("no box", None),
        ("", None),
        ("\\boxed{}", None),
        ("\\boxed{  }", None),
        ("\\boxed{1} then \\boxed{2", None),
        ("\\boxed{" + "9" * 999 + "}", "9" * 999),
        ("\\boxed{" + "9" * 1000 + "}", None),
        ("\\boxed{" + "{" * 100_000, None),
    ],
)
def test_boxed_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "finish_reason", "verdict", "extracted"),
    [
        ("<think>r</think>\\boxed{4}", "stop", Verdict.CORRECT, "4"),
        ("<think>r</think>\\boxed{5}", "stop", Verdict.INCORRECT, "5"),
        ("\\boxed{4}", "stop", Verdict.CORRECT, "4"),
        ("<think>\\boxed{5}</think>\\boxed{4}", "stop", Verdict.CORRECT, "4"),
        # The reasoning is never mined, neither when it is closed nor when it is not.
        ("<think>\\boxed{4}</think>", "stop", Verdict.UNPARSEABLE, None),
        ("<think>\\boxed{4}", "stop", Verdict.TRUNCATED, None),
        ("<think>r</think>\\boxed{4}", "length", Verdict.TRUNCATED, None),
        ("<think>a</think>\\boxed{5}<think>b</think>\\boxed{4}", "stop", Verdict.CORRECT, "4"),
        ("", "stop", Verdict.UNPARSEABLE, None),
        ("", "failed", Verdict.UNPARSEABLE, None),
        ("\\boxed{4}", "failed", Verdict.UNPARSEABLE, None),
        ("<think>r</think>4", "stop", Verdict.UNPARSEABLE, None),
    ],
)
def test_verdicts(text: str, finish_reason: str, verdict: Verdict, extracted: str | None) -> None:
    assert grade_rationale(same_text, "sums", "4", text, finish_reason) == Graded(verdict, extracted)


def test_a_reopened_unclosed_think_is_truncated() -> None:
    graded = grade_rationale(same_text, "sums", "4", "<think>a</think>\\boxed{5}<think>no: \\boxed{4}", "stop")
    assert graded == Graded(Verdict.TRUNCATED, None)


def test_a_grader_that_raises_is_no_wrong_answer() -> None:
    assert grade_rationale(broken, "sums", "4", "\\boxed{4}", "stop") == Graded(Verdict.GRADER_FAILED, "4")


def rows(num_good: int, num_bad: int) -> list[dict[str, Any]]:
    texts = ["\\boxed{4}"] * num_good + ["\\boxed{boom}"] * num_bad
    return [{"problem_id": "p", "text": text, "finish_reason": "stop"} for text in texts]


def touchy(family: str, gold: str, answer: str) -> bool:
    if answer == "boom":
        raise RuntimeError("boom")
    return answer == gold


def test_a_few_broken_answers_are_counted_and_many_stop() -> None:
    problems = {"p": {"family": "sums", "answer": "4"}}
    graded = graded_rows(touchy, problems, rows(95, 5))
    verdicts = [row["verdict"] for row in graded]
    assert (verdicts.count("correct"), verdicts.count("grader_failed"), verdicts.count("incorrect")) == (95, 5, 0)
    with pytest.raises(GradingError, match=r"the grader broke on 6 of 100 answers, more than the allowed share 0\.05"):
        graded_rows(touchy, problems, rows(94, 6))


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [("42", "042", True), ("42", " 42 ", True), ("42", "42.0", False), ("42", "-42", False), ("-7", "-7", True),
     ("1234", "1,234", True), ("42", "forty", False), ("42", "", False), ("42", "4" * 5000, False), ("0", "-0", True),
     ("42", "４２", False)],
)  # fmt: skip
def test_same_integer(gold: str, answer: str, right: bool) -> None:
    assert same_integer("x", gold, answer) is right


def test_same_text_and_names() -> None:
    assert same_text("x", "Two  Words", " two words ") and not same_text("x", "a", "b")
    assert grader_named("integer") is same_integer
    assert grader_named("mot_core.grading.verdicts:same_text") is same_text
    check = grader_named("family")
    assert check("sums", "7", "07") and not check("sort", "1 2", "2 1")
