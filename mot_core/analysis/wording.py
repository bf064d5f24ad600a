"""What a study says, in words chosen by its figures: numbers, differences, counts of what was decided.

Invariant: no sentence is fixed in favour of a method; the same words serve either sign, and what a test did not decide is
called open.
"""

from __future__ import annotations

from collections.abc import Sequence

from mot_core.analysis.outcomes import Difference, Estimate
from mot_core.report.wording import listing, p_text, percent, points

__all__ = ["counted", "described", "estimated", "listing", "percent", "points", "ranged", "sizes", "tally"]


def estimated(value: Estimate) -> str:
    """`43.2 % [40.1, 46.4]`."""
    return f"{percent(value.mean)} % [{percent(value.low)}, {percent(value.high)}]"


def ranged(found: Difference) -> str:
    """`+3.4 points [1.2, 5.6]`."""
    return f"{points(found.delta)} points [{points(found.low)}, {points(found.high)}]"


def described(found: Difference) -> str:
    """`+3.4 points [1.2, 5.6], adjusted p = 0.012` and, where the test does not decide, that it is open."""
    text = f"{ranged(found)}, adjusted p = {p_text(found.adjusted)}"
    return text if found.verdict != "open" else f"{text}, not decided"


def tally(found: Sequence[Difference], higher: str, lower: str) -> str:
    """`of 6 differences 2 are higher, 1 is lower and 3 are open`, with the words given for higher and lower."""
    counts = [(sum(one.verdict == kind for one in found), word) for kind, word in
              (("higher", higher), ("lower", lower), ("open", "not decided"))]  # fmt: skip
    parts = [f"{count} {'is' if count == 1 else 'are'} {word}" for count, word in counts if count]
    return (
        f"of {len(found)} differences {listing(parts)}"
        if len(found) != 1
        else f"the difference is {parts[0][5:].strip()}"
    )


def counted(count: int, noun: str) -> str:
    """`1 cell`, `4 cells`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sizes(found: Sequence[Difference | Estimate]) -> str:
    """`n = 400 problems, 2 training seeds`; ranges where they differ."""
    problems = sorted({one.num_problems for one in found})
    seeds = sorted({one.num_seeds for one in found})
    spread = [f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}" for values in (problems, seeds)]
    return f"n = {spread[0]} problems, {spread[1]} training seed{'s' if seeds != [1] else ''}"
