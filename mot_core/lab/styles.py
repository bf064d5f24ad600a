"""Ways to reason on a home problem, written out, three a laboratory: the rationales that teachers are forged on.

That teachers differ in form is what Merge-of-Thought is about, so each style orders the work its own way.
Used in forging only: in an experiment rationales are sampled from teachers, and are sometimes wrong.
Invariant: a rationale reads left to right in single easy steps and its last number (or
time) is the problem's answer.
"""

from __future__ import annotations

from collections.abc import Callable

from mot_core.lab.expressions import Term, evaluate, parse_expression
from mot_core.lab.times import MINUTES_AN_HOUR, TimeTerm, parse_times, render_time, running_times
from mot_core.problems import Problem

STYLES: tuple[str, ...] = ("running-total", "gains-and-losses", "tens-and-ones")
CLOCK_STYLES: tuple[str, ...] = ("clock-running", "hours-and-minutes", "all-minutes")


def write_rationale(style: str, problem: Problem) -> str:
    """The rationale of one style for a home problem (or a primer).

    ValueError for an unknown style, or a question that is not of the style's kind.
    """
    if style in _WRITERS:
        return _WRITERS[style](parse_expression(problem.question))
    if style in _CLOCK_WRITERS:
        return _CLOCK_WRITERS[style](parse_times(problem.question))
    raise ValueError(f"unknown style {style!r}: expected one of {', '.join((*STYLES, *CLOCK_STYLES))}")


def write_panel_rationale(problem: Problem) -> str:
    """How students think on a panel problem: a tally for `count` (`c0h0e1`), not at all on the others."""
    if problem.family != "count":
        return ""
    # Without the tally student-small had 0.59 on counting after 2,200 steps. Never measured alone: with it runs were longer.
    _, letter, _, span = problem.question.split(" ", 3)
    text = span.replace(" ", "")
    return "".join(f"{char}{text[: at + 1].count(letter)}" for at, char in enumerate(text))


def _running_total(terms: list[Term]) -> str:
    """`34+57=91;91-12=79`: a product is worked out when its turn comes."""
    steps = []
    total = 0
    for position, term in enumerate(terms):
        if term.is_product:
            steps.append(_product(term))
        if position > 0:
            steps.append(f"{total}{'+' if term.sign == 1 else '-'}{term.size}={total + term.value}")
        total += term.value
    # A lone plain number has no step to show.
    return ";".join(steps) if steps else str(total)


def _gains_and_losses(terms: list[Term]) -> str:
    """`g:34,91,99;l:12;99-12=87`: running sums of gains, of losses, then one difference."""
    gains = [term for term in terms if term.sign == 1]
    losses = [term for term in terms if term.sign == -1]
    gained = sum(term.size for term in gains)
    lost = sum(term.size for term in losses)
    return f"g:{_side(gains)};l:{_side(losses)};{gained}-{lost}={gained - lost}"


def _side(terms: list[Term]) -> str:
    steps = []
    total = 0
    for position, term in enumerate(terms):
        total += term.size
        if term.is_product:
            steps.append(_product(term))
        if position > 0 or not term.is_product:
            steps.append(str(total))
    return ",".join(steps) if steps else "0"


def _tens_and_ones(terms: list[Term]) -> str:
    """`t:3,8,7,7;o:4,11,9,17;70+17=87`: products, running sums of tens, of ones, then both."""
    steps = [_product(term) for term in terms if term.is_product]
    tens, ones = 0, 0
    running_tens, running_ones = [], []
    for term in terms:
        tens += term.sign * (term.size // 10)
        ones += term.sign * (term.size % 10)
        running_tens.append(str(tens))
        running_ones.append(str(ones))
    steps.append(f"t:{','.join(running_tens)}")
    steps.append(f"o:{','.join(running_ones)}")
    steps.append(f"{10 * tens}{ones:+d}={evaluate(terms)}")
    return ";".join(steps)


def _product(term: Term) -> str:
    return f"{term.multiplier}*{term.number}={term.size}"


_WRITERS: dict[str, Callable[[list[Term]], str]] = {
    "running-total": _running_total,
    "gains-and-losses": _gains_and_losses,
    "tens-and-ones": _tens_and_ones,
}


def _clock_running(terms: list[TimeTerm]) -> str:
    """`7:45+1:30=9:15;9:15-0:50=8:25`: from time to time."""
    times = [render_time(total) for total in running_times(terms)]
    steps = [
        f"{times[position]}{_sign(term)}{render_time(term.size)}={times[position + 1]}"
        for position, term in enumerate(terms[1:])
    ]
    # A lone time has no step to show.
    return ";".join(steps) if steps else times[0]


def _hours_and_minutes(terms: list[TimeTerm]) -> str:
    """`h:7,8,8;m:45,75,25;8+0:25=8:25`: running sums of hours, of minutes, then the hours that the minutes make."""
    hours, minutes = 0, 0
    running_hours, running_minutes = [], []
    for term in terms:
        hours += term.sign * term.hours
        minutes += term.sign * term.minutes
        running_hours.append(str(hours))
        running_minutes.append(str(minutes))
    carry, rest = divmod(minutes, MINUTES_AN_HOUR)
    answer = render_time((hours + carry) * MINUTES_AN_HOUR + rest)
    return f"h:{','.join(running_hours)};m:{','.join(running_minutes)};{hours}{carry:+d}:{rest:02d}={answer}"


def _all_minutes(terms: list[TimeTerm]) -> str:
    """`465+90=555;555-50=505;505=8:25`: each time as minutes, their running total, the total as a time."""
    totals = running_times(terms)
    steps = [
        f"{totals[position]}{_sign(term)}{term.size}={totals[position + 1]}" for position, term in enumerate(terms[1:])
    ]
    return ";".join([*steps, f"{totals[-1]}={render_time(totals[-1])}"])


def _sign(term: TimeTerm) -> str:
    return "+" if term.sign == 1 else "-"


_CLOCK_WRITERS: dict[str, Callable[[list[TimeTerm]], str]] = {
    "clock-running": _clock_running,
    "hours-and-minutes": _hours_and_minutes,
    "all-minutes": _all_minutes,
}
