"""One completion's verdict. Completions are untrusted text: nothing here evaluates or renders them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from mot_core.prompts import parse_completion
from mot_core.steps import load_object

MAX_ANSWER_CHARACTERS = 1000
BOXED = "\\boxed{"


class Verdict(StrEnum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    GRADER_FAILED = "grader_failed"


@dataclass(frozen=True)
class Graded:
    """A verdict with the answer it was reached from (None if there was none to extract)."""

    verdict: Verdict
    extracted: str | None


Grader = Callable[[str, str, str], bool]
"""`grader(family, gold, answer)`: is the extracted answer right? It may raise: that is `grader_failed`."""

GRADERS: dict[str, str] = {
    "family": "mot_core.lab.families:check_answer",
    "integer": "mot_core.grading.verdicts:same_integer",
    "text": "mot_core.grading.verdicts:same_text",
}


def grader_named(name: str) -> Grader:
    """A grader by registered name or import path."""
    grader: Grader = load_object(GRADERS.get(name, name), f"grader {name!r}")
    return grader


def grade_rationale(grader: Grader, family: str, gold: str, text: str, finish_reason: str) -> Graded:
    """The verdict on one completion. The last boxed answer after the reasoning decides."""
    rationale = parse_completion(text)
    if not rationale.closed or finish_reason == "length":
        return Graded(Verdict.TRUNCATED, None)
    answer = boxed_answer(rationale.answer)
    if answer is None or finish_reason == "failed":
        return Graded(Verdict.UNPARSEABLE, None)
    try:
        right = grader(family, gold, answer)
    except Exception:
        return Graded(Verdict.GRADER_FAILED, answer)
    return Graded(Verdict.CORRECT if right else Verdict.INCORRECT, answer)


def boxed_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` with balanced braces; None without one, or if it is absurdly long."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth, begin = 1, start + len(BOXED)
    for position in range(begin, min(len(text), begin + MAX_ANSWER_CHARACTERS)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position].strip() or None
    return None


_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def same_integer(family: str, gold: str, answer: str) -> bool:
    """Both are the same integer, leading zeros apart (AIME writes 042)."""
    match = _INTEGER.fullmatch(answer.strip().replace(",", ""))
    return match is not None and int(match.group()) == int(gold)


def same_text(family: str, gold: str, answer: str) -> bool:
    """Both are the same text, case and white space apart."""
    return " ".join(answer.split()).casefold() == " ".join(gold.split()).casefold()
