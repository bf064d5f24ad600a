"""What a verdict is, and which graders there are. Completions are untrusted text: nothing here evaluates them.

A grader says whether an extracted answer is right. It may raise: that is `grader_failed`, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from mot_core.errors import GradingError
from mot_core.steps import load_object


class Verdict(StrEnum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    GRADER_FAILED = "grader_failed"


class UngradableGold(GradingError):
    """A reference answer that its grader cannot read, whatever the answer is."""


@dataclass(frozen=True)
class GradeItem:
    """One completion to grade: by which grader, against which reference answer."""

    grader: str
    family: str
    gold: str
    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Graded:
    """A verdict, the answer it was reached from (None if there was none to extract), and the grader's seconds.

    `detail` says why a grader failed: a limit, a death, or the exception's name.
    """

    verdict: Verdict
    extracted: str | None
    seconds: float = 0.0
    detail: str = ""


Grader = Callable[[str, str, str], bool]
"""`grader(family, gold, answer)`: is the extracted answer right?"""

GRADERS: dict[str, str] = {
    "math": "mot_core.grading.equivalence:same_math",
    "integer": "mot_core.grading.answers:same_integer",
    "choice": "mot_core.grading.answers:same_choice",
    "exact": "mot_core.grading.answers:same_exact",
    "text": "mot_core.grading.answers:same_text",
    "family": "mot_core.lab.families:check_answer",
    "gym": "mot_core.grading.gym:same_gym",
}

# These are ours, and bounded: regular expressions without nested repetition over at most MAX_ANSWER_CHARACTERS.
# They can neither hang nor grow, so they need no process of their own, and a laboratory's job starts none.
IN_PROCESS: frozenset[str] = frozenset({"integer", "choice", "exact", "text", "family"})
# The warden has it loaded before it forks; a worker imports any other, which is not its first answer's time.
FORKED_LOADED: frozenset[str] = frozenset({"math"})


def grader_named(name: str) -> Grader:
    """A grader by registered name or import path."""
    grader: Grader = load_object(GRADERS.get(name, name), f"grader {name!r}")
    return grader


def gold_fault(grader: Grader, family: str, gold: str) -> str | None:
    """What is wrong with a reference answer, or None: a grader has to accept the gold as an answer to itself."""
    try:
        accepted = grader(family, gold, gold)
    except UngradableGold as error:
        return str(error)
    except Exception as error:
        return f"the grader raises {type(error).__name__} on the reference answer {gold[:80]!r}"
    return None if accepted else f"the grader does not accept the reference answer {gold[:80]!r} as an answer to itself"


def judge_answer(grader: Grader, family: str, gold: str, answer: str) -> tuple[Verdict, str]:
    """`(verdict, detail)` on an extracted answer, in this process; for graders that are safe there."""
    try:
        return (Verdict.CORRECT if grader(family, gold, answer) else Verdict.INCORRECT), ""
    except Exception as error:
        return Verdict.GRADER_FAILED, describe_failure(error)


def describe_failure(error: BaseException) -> str:
    """A failure's detail: the exception's name; for a bad gold also what is wrong with it."""
    return f"UngradableGold: {error}" if isinstance(error, UngradableGold) else type(error).__name__
