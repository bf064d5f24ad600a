"""Text from models and users on a page, in a figure, a cell or LaTeX: nothing in it can hide, reorder or overrun.

Invariant: as `mot_core.text`, which they build on. HTML escaping is the template's (autoescape).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from mot_core.text import visible

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_LATEX_SYMBOLS = {"−": "$-$", "±": r"$\pm$", "·": r"$\cdot$", "–": "--", "—": "---", "×": r"$\times$"}


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


def markdown_text(text: object) -> str:
    """Untrusted text inside a markdown table: no markup, no line breaks, nothing hidden."""
    plain = visible(re.sub(r"[\x00-\x1f\x7f]+", " ", str(text)))
    # With : and @ no address becomes a link by itself; www. would without either.
    return re.sub(r"([\\`*_{}\[\]()#+\-!|<>&~:@]|(?<=www)\.)", r"\\\1", plain, flags=re.IGNORECASE)


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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {visible(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_plain(item) for item in items]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return visible(value, keep_layout=True)
