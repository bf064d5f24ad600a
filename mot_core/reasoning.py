"""The reasoning format: from what teachers really write to one record, and back to one text.

A rationale is reasoning and an answer, each without surrounding white space. Invariant: what was opened and never
closed is truncated and never holds an answer, and parsing the canonical text of a rationale without a fault
(`fault_of`) gives the same rationale again.

| what a teacher writes | what it becomes |
| --- | --- |
| a thinking mark before the last closing mark | all text before that mark is reasoning, what follows is the answer |
| several blocks, one after the other | reasoning is the blocks and the text between them, blank lines for the marks |
| marks that do not alternate (a stray `</think>`) | they stay in the reasoning as text, which is a fault |
| a closing mark only (the prompt opened it) | the same, with the opening mark understood |
| an opening mark after the last closing one | truncated |
| `<answer>…</answer>` around the whole answer | the answer without these marks; opened and not closed: truncated |
| no thinking mark, but an answer mark or a heading `Final answer` | the text before it is reasoning |
| none of these | all of it is the answer |
| a mark quoted in code | text; where a student would learn it, a fault |
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Ended = Literal["answered", "truncated", "empty"]
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

# Written by: DeepSeek-R1, QwQ, Qwen3, open-r1 (think); models asked for it (thinking); Magistral ([THINK]);
# OpenThoughts, Sky-T1, Bespoke-Stratos (begin_of_thought); s1 (im_start). Upper case is met in the tags only.
_OPEN = r"<think(?:ing)?>|(?-i:\[THINK\])|<\|begin_of_thought\|>|<\|im_start\|>think(?:ing)?\b"
_CLOSE = r"</think(?:ing)?>|(?-i:\[/THINK\])|<\|end_of_thought\|>|<\|im_start\|>answer(?:ing)?\b"
# Around the answer: open-r1 and DeepSeek-R1-Zero (answer); OpenThoughts and its kin (begin_of_solution).
_ANSWER_MARKS = {"<answer>": "</answer>", "<|begin_of_solution|>": "<|end_of_solution|>"}
_ANSWER = "|".join(re.escape(mark) for mark in _ANSWER_MARKS)
_MARK = re.compile(f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})|(?P<answer>{_ANSWER})", re.IGNORECASE)
_THINKING_MARK = re.compile(f"{_OPEN}|{_CLOSE}", re.IGNORECASE)
_OPENING_AT_END = re.compile(f"(?:{_OPEN})\\s*\\Z", re.IGNORECASE)
# QwQ-32B-Preview, LIMO (**Final Answer**), Minerva's prompt (Final Answer: …), chat models (### Final Answer).
# Possessive, since completions are untrusted: a long run of blanks must not cost quadratic time.
_HEADING = re.compile(
    r"^[ \t]*+(?:#{1,6}[ \t]*+)?+(?:\*\*|__)?+final[ \t]++answer(?:(?:[ \t]*+(?:\*\*|__|:))++|[ \t]*+$)",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE_CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")
# A fence begins a line, or follows a mark (canonical text puts the answer right behind one).
_FENCE = re.compile(r"(?:^[ \t]*+|(?<=[>\]]))(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$", re.MULTILINE)
_BOXED = "\\boxed"


@dataclass(frozen=True)
class Rationale:
    """What a completion says. `ended`: answered; truncated (cut inside reasoning or answer); empty (no answer)."""

    reasoning: str
    answer: str
    ended: Ended = "answered"

    @property
    def closed(self) -> bool:
        """Whether the completion came to its own end."""
        return self.ended != "truncated"


def parse_completion(text: str) -> Rationale:
    """The rationale in a completion, in whichever of the known forms it is written."""
    marks = list(_marks(text))
    thinking = [mark for mark in marks if mark.lastgroup != "answer"]
    if not thinking:
        return _parse_unmarked(text, marks)
    last = thinking[-1]
    if last.lastgroup == "open":
        return _truncated(text)
    kinds = [mark.lastgroup for mark in thinking]
    alternate = all(one != other for one, other in itertools.pairwise(kinds))
    before = _joined(text[: last.start()], thinking) if alternate else _as_written(text, thinking, last.start())
    return _concluded(before, text[last.end() :])


def from_parts(reasoning_content: str | None, content: str | None) -> Rationale:
    """The rationale of a server that parts reasoning and content itself.

    Reasoning without any content is truncated: the server never saw its end.
    """
    reasoning, content = (reasoning_content or "").strip(), (content or "").strip()
    if not reasoning:
        return parse_completion(content)
    if not content:
        return _truncated(reasoning)
    return parse_completion(f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n{content}")


def canonical_text(rationale: Rationale) -> str:
    """`<think>reasoning</think>answer`; a truncated rationale stays open."""
    if rationale.ended == "truncated":
        return THINK_OPEN + rationale.reasoning
    # Behind or before a backtick the mark could look quoted.
    gap = "\n" if "`" in (rationale.reasoning[-1:], rationale.answer[:1]) else ""
    return f"{THINK_OPEN}{rationale.reasoning}{gap}{THINK_CLOSE}{gap}{rationale.answer}"


def opening_mark(prompt: str) -> str:
    """The opening mark that a prompt ends with, as it is written there; empty if it ends with none."""
    found = _OPENING_AT_END.search(prompt)
    return found.group().rstrip() if found else ""


def with_opening_mark(prompt: str, text: str) -> str:
    """A completion with the opening mark that its prompt wrote for it, so that one cut inside its reasoning shows it."""
    already = _MARK.match(text.lstrip())
    return text if already and already.lastgroup == "open" else opening_mark(prompt) + text


def thinking_marks(text: str) -> list[str]:
    """The thinking marks in a text, in order, those that code quotes too."""
    return [found.group() for found in _THINKING_MARK.finditer(text)]


def fault_of(rationale: Rationale) -> str | None:
    """Why a rationale could not be told apart again once it is written, in whatever template; None if it could."""
    if rationale.ended == "truncated":
        return "it was cut: what was opened in it is not closed"
    for where, text in (("reasoning", rationale.reasoning), ("answer", rationale.answer)):
        marks = thinking_marks(text)
        if marks:
            return f"its {where} holds the mark {marks[0]!r}"
        if text != text.strip():
            return f"its {where} has white space around it"
    parsed = parse_completion(canonical_text(rationale))
    return None if parsed == rationale else f"written out and parsed, {rationale!r} gives {parsed!r}"


def _parse_unmarked(text: str, marks: list[re.Match[str]]) -> Rationale:
    if marks:
        return _concluded(text[: marks[-1].start()].strip(), text[marks[-1].start() :])
    headings = list(_HEADING.finditer(text))
    if headings:
        at = headings[-1]
        before, after = text[: at.start()].strip(), text[at.start() :]
        if not text[at.end() :].strip():
            return _truncated(before)
        # An answer whose only box stands before its heading stays whole, or nothing could be extracted from it.
        if _BOXED in after or _BOXED not in before:
            return _concluded(before, after)
    return _concluded("", text)


def _concluded(reasoning: str, rest: str) -> Rationale:
    """The rationale whose reasoning ended, from what follows it."""
    answer = rest.strip()
    while True:
        opened = next((mark for mark in _ANSWER_MARKS if answer[: len(mark)].lower() == mark), None)
        if opened is None:
            break
        inner, closing = answer[len(opened) :], _ANSWER_MARKS[opened]
        ends = [found.start() for found in re.finditer(re.escape(closing), inner, re.IGNORECASE)]
        if not ends:
            return _truncated(reasoning)
        if ends != [len(inner) - len(closing)] or opened in inner.lower():
            break  # more was written around or between: the words stay as they are
        answer = inner[: ends[0]].strip()
    return Rationale(reasoning, answer, "answered" if answer else "empty")


def _truncated(text: str) -> Rationale:
    """A rationale that was cut. Its marks go, quoted ones too: nothing may look closed when it is written again."""
    return Rationale(_joined(text, list(_THINKING_MARK.finditer(text))), "", "truncated")


def _joined(text: str, marks: list[re.Match[str]]) -> str:
    """The text with its marks taken out and the parts between them set apart by blank lines."""
    cuts = [mark for mark in marks if mark.end() <= len(text)]
    starts, ends = [0, *(mark.end() for mark in cuts)], [*(mark.start() for mark in cuts), len(text)]
    parts = (text[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return "\n\n".join(part for part in parts if part)


def _as_written(text: str, thinking: list[re.Match[str]], end: int) -> str:
    """The text up to `end` with its marks left in, without a leading opening mark."""
    first = thinking[0]
    leads = first.lastgroup == "open" and not text[: first.start()].strip()
    return text[first.end() if leads else 0 : end].strip()


def _marks(text: str) -> Iterator[re.Match[str]]:
    """The marks of a text in order, without those that code only quotes."""
    found = list(_MARK.finditer(text))
    if not found or ("`" not in text and "~~~" not in text):
        yield from found
        return
    inline = [span.span() for span in _INLINE_CODE.finditer(text)]
    inline_starts = [start for start, _ in inline]
    fenced: dict[int, list[re.Match[str]]] = {}
    blocks = list(_fenced_blocks(text))
    block_starts = [start for start, _ in blocks]
    for mark in found:
        at = bisect_right(block_starts, mark.start()) - 1
        if at >= 0 and mark.end() <= blocks[at][1]:
            fenced.setdefault(at, []).append(mark)
    # An unclosed fence in the reasoning would swallow the real closing mark: only whole blocks are quotations.
    quoted = {id(mark) for marks in fenced.values() if _is_whole(marks) for mark in marks}
    for mark in found:
        at = bisect_right(inline_starts, mark.start()) - 1
        inside = at >= 0 and mark.end() <= inline[at][1]
        # Touching a backtick, since a lone one on either side of a real mark must not make it code.
        touches = "`" in (text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1])
        if id(mark) not in quoted and not (inside and touches):
            yield mark


def _is_whole(marks: list[re.Match[str]]) -> bool:
    kinds = [mark.lastgroup for mark in marks if mark.lastgroup != "answer"]
    return kinds == ["open", "close"] * (len(kinds) // 2)


def _fenced_blocks(text: str) -> Iterator[tuple[int, int]]:
    """`(start, end)` of each closed fenced block (CommonMark: a closing fence is as long, and has no info string)."""
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence["fence"].startswith(opened["fence"]) and not fence["info"].strip():
            yield opened.start(), fence.end()
            opened = None
