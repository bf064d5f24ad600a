"""Text from models and users, made safe to show: nothing in it can hide, reorder or overrun the page.

Invariant: what these functions return encodes as UTF-8 and holds no control or formatting character except
the newline and tab that `visible(..., keep_layout=True)` keeps. HTML escaping is the template's (autoescape).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import Any

# Controls, bidirectional and zero-width formats, lone surrogates, private use, unassigned, line separators.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_LATEX_SYMBOLS = {"−": "$-$", "±": r"$\pm$", "·": r"$\cdot$", "–": "--", "—": "---", "×": r"$\times$"}


def visible(value: object, *, keep_layout: bool = False) -> str:
    """The text with every hidden character shown: ␇ for a control, ⟨U+202E⟩ for the others."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_show(character, keep_layout) for character in text)


def clipped(value: object, max_chars: int) -> tuple[str, str]:
    """Visible text of at most `max_chars` characters, and a note about what was cut ('' if nothing was)."""
    text = str(value)
    note = f"first {max_chars:,} of {len(text):,} characters" if len(text) > max_chars else ""
    return visible(text[:max_chars], keep_layout=True), note


def drawable(value: object, characters: Container[int], max_chars: int = 28) -> str:
    """Text for a figure: one short line, in which a character that the font lacks is written as its code."""
    shown = "".join(c if ord(c) in characters else f"\\u{ord(c):04x}" for c in visible(value))
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"


def spreadsheet(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one, and is no number, gets an apostrophe in
    front (OWASP, CSV injection). Anything but text stays as it is."""
    if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def latex(value: object) -> str:
    """Text escaped for LaTeX; characters that pdflatex cannot set are written as their codes."""
    parts = []
    for character in visible(value):
        if character in _LATEX:
            parts.append(_LATEX[character])
        elif character in _LATEX_SYMBOLS:
            parts.append(_LATEX_SYMBOLS[character])
        else:
            parts.append(character if character.isascii() else rf"\texttt{{U+{ord(character):04X}}}")
    return "".join(parts)


def as_yaml(value: Any) -> str:
    """Nested settings as YAML text, in their own order, whatever types they hold."""
    import yaml

    dumped = yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)
    return visible(dumped, keep_layout=True)


def _show(character: str, keep_layout: bool) -> str:
    code = ord(character)
    if keep_layout and character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"⟨U+{code:04X}⟩" if unicodedata.category(character) in _HIDDEN_CATEGORIES else character


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {visible(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_plain(item) for item in items]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return visible(value, keep_layout=True)
