"""Signed times: the reckoning that questions, answers and rationales of the clock families share.

Invariant: `parse_times(render_times(terms)) == terms`; text is matched, never evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MINUTES_AN_HOUR = 60
MINUTES_A_DAY = 24 * MINUTES_AN_HOUR

_TERM = re.compile(r"([+-])([0-9]|1[0-9]|2[0-3]):([0-5][0-9])(?![0-9])")


@dataclass(frozen=True)
class TimeTerm:
    """A time that is added (`sign` 1) or taken away (`sign` -1); `size` is in minutes, 0 to 1439."""

    sign: int
    size: int

    @property
    def value(self) -> int:
        return self.sign * self.size

    @property
    def hours(self) -> int:
        return self.size // MINUTES_AN_HOUR

    @property
    def minutes(self) -> int:
        return self.size % MINUTES_AN_HOUR


def render_time(minutes: int) -> str:
    """Minutes since midnight as `8:25`: no leading zero, minutes in two digits."""
    assert 0 <= minutes < MINUTES_A_DAY, "a time lies within one day"
    return f"{minutes // MINUTES_AN_HOUR}:{minutes % MINUTES_AN_HOUR:02d}"


def running_times(terms: list[TimeTerm]) -> list[int]:
    """The time after each term, in minutes since midnight."""
    totals = []
    total = 0
    for term in terms:
        total += term.value
        totals.append(total)
    return totals


def render_times(terms: list[TimeTerm]) -> str:
    """The question's text, e.g. `7:45+1:30-0:50`; the first term must be positive."""
    assert terms and terms[0].sign == 1, "a question starts with a time that is added"
    signs = ["", *("+" if term.sign == 1 else "-" for term in terms[1:])]
    return "".join(f"{sign}{render_time(term.size)}" for sign, term in zip(signs, terms, strict=True))


def parse_times(text: str) -> list[TimeTerm]:
    """The terms of a clock question; ValueError for any other text."""
    signed = f"+{text}"
    terms = []
    position = 0
    while position < len(signed):
        found = _TERM.match(signed, position)
        if found is None:
            raise ValueError(
                f"expected times such as 7:45+1:30-0:50, got {text[:60]!r} (stuck at character {position})"
            )
        sign, hours, minutes = found.groups()
        terms.append(TimeTerm(1 if sign == "+" else -1, int(hours) * MINUTES_AN_HOUR + int(minutes)))
        position = found.end()
    return terms
