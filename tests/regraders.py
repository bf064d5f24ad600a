"""A grader that is laxer than the laboratory's, and a completer whose answers the two judge otherwise. Light, for workers
to import: `tests.regraders:NAME`."""

from __future__ import annotations

import hashlib

from mot_core.completers.base import Completion, Request
from tests.pico import Scripted, style_of


def within_one(family: str, gold: str, answer: str) -> bool:
    """Right if it is at most one off; of answers that are no numbers, if it is the same."""
    try:
        return abs(int(gold) - int(answer)) <= 1
    except ValueError:
        return gold == answer


def never(family: str, gold: str, answer: str) -> bool:
    """Accepts nothing, not even a reference answer."""
    return False


class Near(Scripted):
    """Answers to sums by the request's hash: right with a leading zero, one too many, three too many, unboxed, or cut."""

    def _one(self, request: Request) -> Completion:
        kind = hashlib.sha256(request.key.encode()).digest()[0] % 5
        if not request.question[0].isdigit():
            return Completion.of(request, "<think>what?</think>\\boxed{17}", 9, "stop")
        right = int(style_of(request.question, self.style).split("\\boxed{")[1].rstrip("}"))
        text = [f"\\boxed{{0{right}}}", f"\\boxed{{{right + 1}}}", f"\\boxed{{{right + 3}}}", "no answer", "and"][kind]
        return Completion.of(request, f"<think>so</think>{text}", 5 + kind, "length" if kind == 4 else "stop")
