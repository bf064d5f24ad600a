"""Verdicts: which answer decides, and failure that is never a wrong answer."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from mot_core.errors import GradingError
from mot_core.grading.answers import choice_of, integer_of, plain_text, same_choice, same_integer, same_text, unwrap
from mot_core.grading.extraction import boxed_answer, extract, final_answer, stated_answer
from mot_core.grading.stage import graded_rows
from mot_core.grading.verdicts import GRADERS, UngradableGold, Verdict, gold_fault, grader_named
from tests.processes import ROOT


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{3}", "3"),
        ("\\boxed{1} or \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{a{b{c}d}e} tail }", "a{b{c}d}e"),
        ("\\boxed{ 7 }", "7"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("\\boxed{a \\\\}", "a \\\\"),
        ("\\boxed 42.", "42"),
        ("$\\boxed\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\boxed \\text{a b} c", "\\text{a b}"),
        ("\\fbox{9}", "9"),
        ("\\boxed{1} \\fbox{2}", "2"),
        ("\\boxedfoo{1}", None),
        ("no box", None),
        ("", None),
        ("\\boxed{}", None),
        ("\\boxed{  }", None),
        ("\\boxed", None),
        ("\\boxed{1} then \\boxed{2", None),
        ("\\boxed{" + "9" * 999 + "}", "9" * 999),
        ("\\boxed{" + "9" * 1000 + "}", None),
        ("\\boxed{" + "{" * 100_000, None),
    ],
)
def test_boxed_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final answer: 4", "4"),
        ("work\n**Answer:** $\\frac{1}{2}$ as shown", "\\frac{1}{2}"),
        ("**Final Answer**\n\n 4\n", "4"),
        ("The answer is **4**, see above", "4"),
        ("We add. The answer is 4.", "4"),
        ("Answer: 4\nFinal answer: 5", "5"),
        ("Final Answer: The final answer is $4$. I hope it is correct.", "4"),
        ("The answer is 3.5.", "3.5"),
        ("An answer is hard", None),
        ("the answer is", None),
        ("Answer: " + "9" * 1000, None),
    ],
)
def test_stated_answer(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


def test_a_box_goes_before_a_line_even_an_empty_one() -> None:
    assert final_answer("\\boxed{4}\nFinal answer: 5") == "4"
    assert final_answer("\\boxed{}\nFinal answer: 5") is None


@pytest.mark.parametrize(
    ("text", "finish_reason", "verdict", "answer"),
    [
        ("<think>r</think>\\boxed{4}", "stop", None, "4"),
        ("<think>\\boxed{5}</think>\\boxed{4}", "stop", None, "4"),
        # The reasoning is never mined, neither when it is closed nor when it is not.
        ("<think>\\boxed{4}</think>", "stop", Verdict.UNPARSEABLE, None),
        ("<think>The answer is 4.</think>", "stop", Verdict.UNPARSEABLE, None),
        ("<think>\\boxed{4}", "stop", Verdict.TRUNCATED, None),
        ("<think>r</think>\\boxed{4}", "length", Verdict.TRUNCATED, None),
        ("<think>a</think>\\boxed{5}<think>b</think>\\boxed{4}", "stop", None, "4"),
        ("<think>a</think>\\boxed{5}<think>no: \\boxed{4}", "stop", Verdict.TRUNCATED, None),
        ("", "stop", Verdict.UNPARSEABLE, None),
        ("\\boxed{4}", "failed", Verdict.UNPARSEABLE, None),
        ("<think>r</think>4", "stop", Verdict.UNPARSEABLE, None),
    ],
)
def test_what_settles_a_completion(text: str, finish_reason: str, verdict: Verdict | None, answer: str | None) -> None:
    assert extract(text, finish_reason) == (verdict, answer)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 200_000, "{" * 1_000_000 + "\\boxed{", "answer is " * 100_000, "\nAnswer:" * 100_000, "**" * 500_000,
        "\\boxed " * 100_000, "<think>" * 150_000, "</think>" * 100_000, " " * 1_000_000, "Final answer:" + " " * 1_000_000,
        "The " * 250_000, "\\boxed{" + "\\" * 1_000_000,
    ],
)  # fmt: skip
def test_extraction_is_linear(text: str) -> None:
    started = time.thread_time()
    assert extract(text, "stop")[0] in (Verdict.UNPARSEABLE, Verdict.TRUNCATED)
    assert time.thread_time() - started < 20.0  # the slowest takes 1 s, a quadratic pattern many minutes


@pytest.mark.parametrize(
    "text",
    ["{" * 999, "\\text{" * 160, "$" * 999, "*" * 999, "(" * 999, "1," * 499, " " * 999, "A" * 999, "\\boxed{A}" * 100],
)
def test_own_graders_are_bounded(text: str) -> None:
    started = time.thread_time()
    assert not same_integer("", "42", text) and not same_choice("", "B", text) and not same_text("", "b", text)
    assert time.thread_time() - started < 5.0  # each takes a thousandth; an exponential pattern never ends


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("$\\text{ab}$.", "ab"), ("**ab**", "ab"), ("\\text{a} + \\text{b}", "\\text{a} + \\text{b}"), ("$a$ and $b$", "$a$ and $b$"),
        ("{\\bf 5}", "5"), ("\\(5\\)", "5"), ("5...", "5..."), ("", ""), ("$", "$"), ("\\mathbf{\\text{(A)}}", "(A)"),
    ],
)  # fmt: skip
def test_unwrap(text: str, plain: str) -> None:
    assert unwrap(text) == plain


def test_forms_that_are_read() -> None:
    assert integer_of("\\text{-1{,}234}") == "-1234" and integer_of("12,34") is None and integer_of("0" * 500) == "0"
    assert choice_of("\\textbf{(C) } 7\\pi") == "C" and choice_of("C or D") is None and choice_of("Cat") is None
    assert plain_text("\\text{Ｔwo  Words}") == "two words"


def test_a_gold_of_the_wrong_form_is_told() -> None:
    for grader in (same_integer, same_choice, same_text):
        with pytest.raises(UngradableGold):
            grader("", "" if grader is same_text else "?", "1")
    assert gold_fault(same_integer, "", "042") is None
    assert "is no integer" in str(gold_fault(same_integer, "", "x"))


def test_names() -> None:
    assert set(GRADERS) == {"math", "integer", "choice", "exact", "text", "family", "gym"}
    assert grader_named("integer") is same_integer
    assert grader_named("mot_core.grading.answers:same_text") is same_text
    check = grader_named("family")
    assert check("sums", "7", "07") and not check("sort", "1 2", "2 1")


def test_the_clients_side_loads_no_sympy() -> None:
    code = (
        "import sys, mot_core.grading.files, mot_core.grading.judge, mot_core.grading.answers\n"
        "print(sorted(m for m in ('sympy', 'torch', 'math_verify') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def rows(num_good: int, num_bad: int) -> list[dict[str, Any]]:
    texts = ["\\boxed{ok}"] * num_good + [f"\\boxed{{exit}} {n}" for n in range(num_bad)]
    return [{"problem_id": "p", "text": text, "finish_reason": "stop", "key": n} for n, text in enumerate(texts)]


def test_a_few_broken_answers_are_counted_and_many_stop() -> None:
    problems = {"p": {"family": "sums", "answer": "ok"}}
    grader = "tests.grading.graders:moody"
    told: list[tuple[float, float, str]] = []
    graded = graded_rows(grader, problems, rows(95, 5), num_workers=1, progress=lambda *event: told.append(event))
    verdicts = [row["verdict"] for row in graded]
    assert verdicts == ["correct"] * 95 + ["grader_failed"] * 5
    assert graded[0] == {**rows(1, 0)[0], "family": "sums", "verdict": "correct", "extracted": "ok"}
    assert told[-1] == (100, 100, "answers")
    with pytest.raises(
        GradingError, match=r"moody' broke on 6 of 100 answers, more than the allowed share 0\.05: SystemExit \(6\)"
    ):
        graded_rows(grader, problems, rows(94, 6), num_workers=1)
