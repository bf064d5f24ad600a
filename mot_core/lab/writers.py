"""Teachers without weights: a completer that writes rationales of sums and products out instead of sampling them.

    - {name: shifted, model: lab-style/shifted, completer: "mot_core.lab.writers:StyleWriter"}

They reason as no forged model does: `shifted` is right, but in another order, in words, and at greater length; `wrong`
is fluent and never right. Invariant: a completion is a function of style, question and the request's seed; torch is
not needed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, ClassVar

from mot_core.completers.base import Accept, Completion, Request, Source
from mot_core.errors import CompletionError, ModelError
from mot_core.lab.expressions import Term, evaluate, parse_expression
from mot_core.lab.tokenizer import END, FORMAT_TOKENS, render_completion

WRITTEN_STYLES: tuple[str, ...] = ("shifted", "wrong")

_PREFIX = "lab-style/"
_TOKEN = re.compile("|".join([*map(re.escape, FORMAT_TOKENS), r"[\s\S]"]))


class StyleWriter:
    """Writes one style's completion of each request; like a model's, it is cut at the sampling's limit."""

    batched: ClassVar[bool] = False

    def __init__(self, source: Source) -> None:
        """Raises:
        ModelError: the teacher's `model` is not `lab-style/` and a style that is written here.
        """
        style = source.locator.removeprefix(_PREFIX)
        if not source.locator.startswith(_PREFIX) or style not in WRITTEN_STYLES:
            known = ", ".join(f"{_PREFIX}{name}" for name in WRITTEN_STYLES)
            raise ModelError(
                f"model of a written teacher: expected one of {known}, got {source.locator!r}; correct it in the spec"
            )
        self.style = style
        self._max_tokens = source.sampling.max_completion_tokens

    def facts(self) -> dict[str, Any]:
        randomness = "the request's seed" if self.style == "wrong" else "none"
        return {"engine": "written", "style": self.style, "randomness": randomness}

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        """Accept one completion a request, all as one group.

        Raises:
            CompletionError: a question that is no sum.
        """
        completions = [self._completion(request) for request in requests]
        accept(completions)
        progress(sum(completion.num_tokens for completion in completions))

    def _completion(self, request: Request) -> Completion:
        try:
            text = write_completion(self.style, request.question, request.seed)
        except ValueError as error:
            raise CompletionError(
                f"problem {request.problem_id}: style {self.style!r} cannot reason about it: {error}; "
                "give a written teacher problems of sums, products, short-sums and short-products only"
            ) from None
        # One token a character or format mark, as the laboratory's tokenizer has them, and the end token.
        tokens = _TOKEN.findall(text)
        if len(tokens) < self._max_tokens:
            return Completion.of(request, text, len(tokens) + 1, "stop", prompt=request.question)
        cut = "".join(tokens[: self._max_tokens])
        return Completion.of(request, cut, self._max_tokens, "length", prompt=request.question)


def write_completion(style: str, question: str, seed: int) -> str:
    """What a written teacher answers, without the end token; `seed` decides where `wrong` goes wrong, and how.

    ValueError for a question that is no sum, or a style that is not written here.
    """
    if style not in WRITTEN_STYLES:
        raise ValueError(f"unknown style {style!r}: expected one of {', '.join(WRITTEN_STYLES)}")
    terms = parse_expression(question)
    if style == "shifted":
        rationale, answer = _shifted(terms), evaluate(terms)
    else:
        rationale, answer = _wrong(terms, random.Random(seed))
    return render_completion(rationale, str(answer)).removesuffix(END)


def _shifted(terms: list[Term]) -> str:
    """`8 and -12 is -4 and 57 is 53 and 34 is 87` for `34+57-12+8`: from the last term to the first, in words."""
    parts: list[str] = []
    total = 0
    for term in reversed(terms):
        named = str(term.value)
        if term.is_product:
            named = f"{term.sign * term.multiplier}*{term.number} or {term.value}"
        total += term.value
        parts.append(f"{named} is {total}" if parts else named)
    return " and ".join(parts)


def _wrong(terms: list[Term], rng: random.Random) -> tuple[str, int]:
    """A running total with one wrong digit in the result of one step, which all later steps build on; and its end.

    The error is carried to the end unchanged but for its sign, so the end is never the answer.
    """
    right = [result for _, result in _steps(terms)]
    slips = [(at, slip - result) for at, result in enumerate(right) for slip in _one_digit_off(result)]
    # A total below zero would give the error away: no forged teacher has met one.
    fluent = [slip for slip in slips if min(result for _, result in _steps(terms, *slip)) >= 0] or slips
    wrong_step = rng.choice(sorted({at for at, _ in fluent}))
    steps = _steps(terms, wrong_step, rng.choice([error for at, error in fluent if at == wrong_step]))
    return ";".join(text for text, _ in steps), steps[-1][1]


def _steps(terms: list[Term], wrong_step: int | None = None, error: int = 0) -> list[tuple[str, int]]:
    """The steps of a running total with their results; `error` is added to the result of `wrong_step`."""
    steps: list[tuple[str, int]] = []
    total = 0
    for position, term in enumerate(terms):
        size = term.size
        if term.is_product:
            size += error if len(steps) == wrong_step else 0
            steps.append((f"{term.multiplier}*{term.number}={size}", size))
        before, total = total, total + term.sign * size
        if position > 0:
            total += error if len(steps) == wrong_step else 0
            steps.append((f"{before}{'+' if term.sign == 1 else '-'}{size}={total}", total))
    if not steps:
        # A lone plain number has no step to show: it is read wrong.
        total += error if wrong_step == 0 else 0
        steps.append((str(total), total))
    return steps


def _one_digit_off(number: int) -> list[int]:
    """All numbers of as many digits that differ from `number` in one digit, with the same sign."""
    digits = str(abs(number))
    others = {
        int(digits[:at] + digit + digits[at + 1 :])
        for at in range(len(digits))
        for digit in "0123456789"
        if digit != digits[at] and not (digit == "0" and at == 0 and len(digits) > 1)
    }
    return sorted(-other if number < 0 else other for other in others)
