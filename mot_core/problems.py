"""The record that every stage shares: one problem with its reference answer; and when two questions are one.

Invariant: `problem_id` is a pure function of family and question, so the same problem drawn by two
experiments is the same problem everywhere (corpora, coverage tables, paired tests).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

# How TeX is typeset, which says nothing of what is asked. A command ends where its letters do.
_TYPESETTING = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|quad|qquad|thinspace|hspace\*?\s*\{[^{}]*\})(?![a-z])"
    r"|\\[,;:!>()\[\]\s]|\$|~"
)
_FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
_SCRIPT = re.compile(r"([\^_])\s*\{\s*(\w)\s*\}")
# Not '!' (a factorial), and no full stop or colon before anything but white space (1.5, 3:4).
_PUNCTUATION = re.compile(r"[.;:?]+(?=\s|$)")
_SPACE_AT_SYMBOL = re.compile(r" (?:(?=[^\w ])|(?<=[^\w ] ))")
_DASHES = str.maketrans("\u2212\u2010\u2011\u2012\u2013\u2014\u2018\u2019\u201c\u201d", "------''\"\"")


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


def normal_question(text: str) -> str:
    """A question's normal form: two questions with one normal form are one problem.

    Unicode (NFKC), case, white space, TeX's spacing and delimiters (`$`, `\\left`, `\\,`, `\\dfrac`) and punctuation go;
    operators, digits, decimal points, braces and words stay. Applying it twice changes nothing more.
    """
    while (shorter := _normalised_once(text)) != text:
        text = shorter
    return text


def _normalised_once(text: str) -> str:
    text = text.lower() if text.isascii() else _folded(text)
    if any(mark in text for mark in "\\$~^_"):
        text = _FRACTION.sub(r"\\frac", _TYPESETTING.sub(" ", text))
        text = _SCRIPT.sub(r"\1\2", text)
    text = _PUNCTUATION.sub(" ", text.replace(",", " ").replace('"', " "))
    return _SPACE_AT_SYMBOL.sub("", " ".join(text.split()))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_DASHES)
