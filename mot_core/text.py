"""Text from models, users, servers and libraries, made safe to show on a line of a log, a terminal or a page.

Invariant: what these functions return encodes as UTF-8 and holds no control or formatting character except the newline
and tab that `visible(..., keep_layout=True)` keeps. Standard library only: the workers' parent imports it.
"""

from __future__ import annotations

import re
import unicodedata

# Controls, bidirectional and zero-width formats, lone surrogates, private use, unassigned, line separators.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LINE_CHARACTERS = 10_000
"""Of a log's line that are kept: what a model writes on one line may fill memory, and Prefect refuses it."""


def visible(value: object, *, keep_layout: bool = False) -> str:
    """The text with every hidden character shown: ␇ for a control, ⟨U+202E⟩ for the others."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_show(character, keep_layout) for character in text)


def log_line(text: str) -> str:
    """One line of a process's output: without colours and the end of a DOS line, everything else visible, not too long."""
    plain = _COLOUR.sub("", text.rstrip("\r\n"))
    note = f"… [cut: {len(plain):,} characters]" if len(plain) > LINE_CHARACTERS else ""
    return "\t".join(visible(part) for part in plain[:LINE_CHARACTERS].split("\t")) + note


def _show(character: str, keep_layout: bool) -> str:
    code = ord(character)
    if keep_layout and character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"⟨U+{code:04X}⟩" if unicodedata.category(character) in _HIDDEN_CATEGORIES else character
