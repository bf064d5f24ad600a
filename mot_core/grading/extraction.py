r"""The answer that a completion states: its last box, or else its last explicit final-answer line.

Invariant: reasoning is never mined, neither when it is closed nor when it is cut off; the last box decides even if it is
empty or never closed, because falling back to an earlier one would grade an answer that was taken back. Every step is
linear in the text, so a megabyte of hostile text costs milliseconds.
"""

from __future__ import annotations

import re
from collections import deque

from mot_core.grading.verdicts import Verdict
from mot_core.reasoning import parse_completion

MAX_ANSWER_CHARACTERS = 1000

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
# A final answer stands at the end; what precedes this many characters is not searched for one without a box.
_STATEMENT_WINDOW = 20_000
_STATEMENT = re.compile(
    # At the start of a line, after markdown (quote, heading, list, bold), or at the start of a sentence.
    r"(?:^[ \t>#*_✅-]{0,12}|(?<=[.!?:] ))"
    r"(?:(?:so|thus|therefore|hence),?[ ]{1,3})?"
    r"(?:(?:the[ ]{1,3})?(?:final[ ]{1,3})?answer[ ]{1,3}is[ ]{0,3}(?::[*_]{0,3})?"
    r"|(?:the[ ]{1,3})?(?:final[ ]{1,3})?answer[ ]{0,3}[*_]{0,3}[ ]{0,3}:[*_]{0,3}"
    r"|final[ ]{1,3}answer[ ]{0,3}[*_]{1,3}[ ]{0,3}$)"
    r"[ \t]{0,8}(?P<rest>.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_LINE = re.compile(r"\s{0,20}\n[ \t]*(?P<rest>\S.*)")


def extract(text: str, finish_reason: str) -> tuple[Verdict | None, str | None]:
    """`(None, answer)`, or the verdict that settles a completion without an answer."""
    rationale = parse_completion(text)
    if not rationale.closed or finish_reason == "length":
        return Verdict.TRUNCATED, None
    answer = None if finish_reason == "failed" else final_answer(rationale.answer)
    return (Verdict.UNPARSEABLE, None) if answer is None else (None, answer)


def final_answer(text: str) -> str | None:
    """The last boxed answer; without any box, the last stated one."""
    if "\\boxed" in text or "\\fbox" in text:
        return boxed_answer(text)
    return stated_answer(text)


def boxed_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`, `\fbox{…}` or `\boxed …`; None if it is empty, unclosed or absurdly long."""
    last = _last_match(_BOX, text)
    if last is None:
        return None
    rest = text[last.end() : last.end() + MAX_ANSWER_CHARACTERS + 100].lstrip()
    content = _braced(rest) if rest.startswith("{") else _unbraced(rest)
    if content is None or len(content) >= MAX_ANSWER_CHARACTERS:
        return None
    return content.strip() or None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def _braced(rest: str) -> str | None:
    end = closing_brace(rest, 0)
    return None if end == -1 else rest[1:end]


def closing_brace(text: str, opening: int) -> int:
    """The place of the brace that closes the one at `opening`; -1 without one. An escaped brace is text."""
    depth, position = 0, opening
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return -1


def _unbraced(rest: str) -> str:
    r"""`\boxed 42`: up to white space, `$` or the end of the line, outside of braces."""
    depth, position = 0, 0
    while position < len(rest):
        character = rest[position]
        if character in "$\n" or (character.isspace() and depth == 0):
            break
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
        position += 1
    return rest[:position].rstrip(".,;:")


def stated_answer(text: str) -> str | None:
    """What the last line of the form `Final answer: X`, `**Answer:** X` or `The answer is X` says."""
    last = _last_match(_STATEMENT, text[-_STATEMENT_WINDOW:])
    if last is None:
        return None
    rest = last["rest"].strip()
    while again := _STATEMENT.match(rest):  # 'Final Answer: The final answer is $4$.'
        rest = again["rest"].strip()
    if not rest.strip("*_: "):
        following = _NEXT_LINE.match(text[-_STATEMENT_WINDOW:], last.end())
        rest = following["rest"].strip() if following else ""
    return _first_phrase(rest)


def _first_phrase(rest: str) -> str | None:
    """The quoted part if a line starts with one, else its first sentence."""
    for mark in ("$$", "$", "**", "`"):
        if rest.startswith(mark) and rest.find(mark, len(mark)) > 0:
            rest = rest[len(mark) : rest.find(mark, len(mark))]
            break
    else:
        rest = re.split(r"\.\s", rest, maxsplit=1)[0]
        rest = rest.strip("*_ ").rstrip(".")
    rest = rest.strip()
    return rest if 0 < len(rest) < MAX_ANSWER_CHARACTERS else None
