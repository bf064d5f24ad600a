"""The record that every stage shares: one problem with its reference answer.

Invariant: `problem_id` is a pure function of family and question, so the same problem drawn by two
experiments is the same problem everywhere (corpora, coverage tables, paired tests).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any


def problem_id_of(family: str, question: str) -> str:
    """The stable id of a problem: family, then 12 hex digits of SHA-256 over family and question."""
    digest = hashlib.sha256(f"{family}\x00{question}".encode()).hexdigest()
    return f"{family}-{digest[:12]}"


@dataclass(frozen=True)
class Problem:
    """One question with its reference answer; `answer` is text in the family's answer form."""

    problem_id: str
    family: str
    question: str
    answer: str

    @classmethod
    def of(cls, family: str, question: str, answer: str) -> Problem:
        return cls(problem_id_of(family, question), family, question, answer)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
