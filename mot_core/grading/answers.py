r"""Graders of our own, for answers that need no algebra: integers, options, texts.

Model output arrives here, so it is hostile text. Invariant: nothing is evaluated, an answer has at most
MAX_ANSWER_CHARACTERS, every expression is linear in it, and whatever is not plainly the expected form is a wrong
answer, never an error. A reference answer of the wrong form raises `UngradableGold`.
"""

from __future__ import annotations

import re
import unicodedata

from mot_core.grading.extraction import MAX_ANSWER_CHARACTERS, closing_brace
from mot_core.grading.verdicts import UngradableGold

_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"), ("`", "`"))
_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|md)?|math(?:bf|it|rm|sf|tt|normal)|boldsymbol|bm|mbox|hbox|emph|pmb"
    r"|underline|boxed|fbox)\s*\{"
)
_OLD_STYLE = re.compile(r"\{\s*\\(?:bf|it|rm|sf)(?![A-Za-z])([^{}]*)\}")
_GROUP = r"(?:,|\{,\}|\\[,;: !]|[ \u00a0\u2009\u202f])"
_INTEGER = re.compile(rf"([+-]?)\s?([0-9]{{1,3}}(?:{_GROUP}[0-9]{{3}})+|[0-9]+)")
_SEPARATOR = re.compile(_GROUP)
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s{0,3}:?\s{0,3})?(?:\(\s?([A-Z])\s?\)|([A-Z]))(.*)", re.IGNORECASE | re.DOTALL
)


def same_integer(family: str, gold: str, answer: str) -> bool:
    """Both are the same integer: AIME's leading zeros, thousands separators and TeX wrappers are read through."""
    expected = integer_of(gold)
    if expected is None:
        raise UngradableGold(f"the reference answer {gold[:80]!r} is no integer; expected digits, such as 042 or 1,234")
    return integer_of(answer) == expected


def integer_of(text: str) -> str | None:
    """An integer's digits with its sign, as text: exact at any length, without Python's limit on digits."""
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    match = _INTEGER.fullmatch(unwrap(text).replace("\u2212", "-"))
    if match is None:
        return None
    digits = _SEPARATOR.sub("", match[2]).lstrip("0") or "0"
    return f"-{digits}" if match[1] == "-" and digits != "0" else digits


def same_choice(family: str, gold: str, answer: str) -> bool:
    """Both name the same option: `A`, `(A)`, `a`, `\\textbf{(A)}`, `A) 42`, `Option A`."""
    expected = choice_of(gold)
    if expected is None:
        raise UngradableGold(f"the reference answer {gold[:80]!r} names no option; expected a letter, such as C or (C)")
    return choice_of(answer) == expected


def choice_of(text: str) -> str | None:
    """The option's letter; None if a text names none, or more than one."""
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    # \textbf{(A) }42 and \text{A}: the letter may be wrapped alone, so the wrappers go wherever they stand.
    plain = _COMMAND.sub("", unwrap(text)).replace("{", "").replace("}", "").replace("*", "").replace("$", "")
    plain = re.sub(r"\\[ ,;!]|\\q?quad(?![A-Za-z])|~", " ", plain).strip()
    match = _CHOICE.fullmatch(plain)
    if match is None:
        return None
    letter, rest = (match[1] or match[2]).upper(), match[3]
    bracketed = match[1] is not None
    if not rest.strip(" .)]:"):
        return letter
    if re.match(r"\s*(?:(?:and|or|,|&|/)\s*\(?[A-Za-z]\b|\([A-Za-z]\))", rest):  # 'A and B' is no choice
        return None
    return letter if bracketed or re.match(r"[.):]\s*\S", rest) else None


def same_exact(family: str, gold: str, answer: str) -> bool:
    """Both are the same text, character by character, outer white space apart."""
    if not gold.strip():
        raise UngradableGold("the reference answer is empty")
    return answer.strip() == gold.strip()


def same_text(family: str, gold: str, answer: str) -> bool:
    """Both are the same text: NFKC, case, white space, outer TeX or markdown wrappers and a final full stop apart."""
    expected = plain_text(gold)
    if not expected:
        raise UngradableGold(f"the reference answer {gold[:80]!r} is empty once it is unwrapped")
    return len(answer) <= MAX_ANSWER_CHARACTERS and plain_text(answer) == expected


def plain_text(text: str) -> str:
    """A text's normal form."""
    return " ".join(unicodedata.normalize("NFKC", unwrap(text)).split()).casefold()


def unwrap(text: str) -> str:
    r"""A text without what only typesets it as a whole: `$…$`, `**…**`, `\text{…}`, a final full stop."""
    before = None
    text = text.strip()
    while text != before:
        before = text
        text = text.removeprefix("\\displaystyle").removeprefix("\\textstyle").strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for left, right in _WRAPPERS:
            inner = text[len(left) : -len(right)]
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                text = inner.strip() if left not in inner and right not in inner else text
        old = _OLD_STYLE.fullmatch(text)
        text = old[1].strip() if old else text
        command = _COMMAND.match(text)
        if command and closing_brace(text, command.end() - 1) == len(text) - 1:
            text = text[command.end() : -1].strip()
    return text
