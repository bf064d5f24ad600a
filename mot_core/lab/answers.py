"""When two answers state the same value, for the laboratory's answer forms.

Model output arrives here, so it is hostile text. Invariant: nothing is evaluated, the work is bounded by
`_MAX_CHARS`, and whatever is not plainly the expected form is a wrong answer, never an error.
"""

from __future__ import annotations

import re

_MAX_CHARS = 64
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_TIME = re.compile(r"([0-9]{1,2}):([0-5][0-9])")


def same_integer(gold: str, answer: str) -> bool:
    """Whether both are the same whole number; a sign, leading zeros and outer blanks are allowed."""
    stated = _integers(answer)
    return stated is not None and len(stated) == 1 and stated == _integers(gold)


def same_integer_list(gold: str, answer: str) -> bool:
    """Whether both list the same whole numbers in the same order, set apart by blanks or commas."""
    stated = _integers(answer)
    return stated is not None and stated == _integers(gold)


def same_word(gold: str, answer: str) -> bool:
    """Whether both are the same word but for case and outer blanks."""
    if not isinstance(answer, str) or len(answer) > _MAX_CHARS:
        return False
    return answer.strip().lower() == gold.strip().lower()


def same_time(gold: str, answer: str) -> bool:
    """Whether both are the same time of day, `8:25`; a leading zero of the hour and outer blanks are allowed."""
    stated = _time(answer)
    return stated is not None and stated == _time(gold)


def _time(text: str) -> tuple[int, int] | None:
    if not isinstance(text, str) or len(text) > _MAX_CHARS:
        return None
    found = _TIME.fullmatch(text.strip())
    return (int(found[1]), int(found[2])) if found else None


def _integers(text: str) -> list[int] | None:
    if not isinstance(text, str) or len(text) > _MAX_CHARS:
        return None
    # U+2212 is the minus that typeset text carries.
    words = re.split(r"[ ,]+", text.strip().replace("\u2212", "-"))
    if not all(_INTEGER.fullmatch(word) for word in words):
        return None
    return [int(word) for word in words]
