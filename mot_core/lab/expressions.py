"""Signed terms: the arithmetic that questions, answers and rationales of the home families share.

Invariant: `parse_expression(render_expression(terms)) == terms`; text is matched, never evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TERM = re.compile(r"([+-])(?:([2-9])\*)?([0-9]{1,2})")


@dataclass(frozen=True)
class Term:
    """`sign * multiplier * number`; the multiplier is 1 for a plain term."""

    sign: int
    multiplier: int
    number: int

    @property
    def is_product(self) -> bool:
        return self.multiplier != 1

    @property
    def size(self) -> int:
        """The term's value without its sign."""
        return self.multiplier * self.number

    @property
    def value(self) -> int:
        return self.sign * self.size


def evaluate(terms: list[Term]) -> int:
    """The sum of the terms."""
    return sum(term.value for term in terms)


def render_expression(terms: list[Term]) -> str:
    """The question's text, e.g. `34+2*57-12`; the first term must be positive."""
    assert terms and terms[0].sign == 1, "an expression starts with a positive term"
    parts = []
    for position, term in enumerate(terms):
        sign = "" if position == 0 else "+" if term.sign == 1 else "-"
        parts.append(f"{sign}{term.multiplier}*{term.number}" if term.is_product else f"{sign}{term.number}")
    return "".join(parts)


def parse_expression(text: str) -> list[Term]:
    """The terms of a home question; ValueError for any other text."""
    signed = f"+{text}"
    terms = []
    position = 0
    while position < len(signed):
        found = _TERM.match(signed, position)
        if found is None:
            raise ValueError(f"expected a sum such as 34+2*57-12, got {text[:60]!r} (stuck at character {position})")
        sign, multiplier, number = found.groups()
        terms.append(Term(1 if sign == "+" else -1, int(multiplier or 1), int(number)))
        position = found.end()
    return terms
