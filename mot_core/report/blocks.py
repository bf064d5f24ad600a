"""What a section of the report is made of: plain records that the template lays out.

Invariant: strings here are unescaped text, visible in the sense of `mot_core.report.text`; only the template
makes HTML of them, with autoescape on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mot_core.report.figures.drawing import RenderedFigure
from mot_core.text import visible


@dataclass(frozen=True)
class Cell:
    """One table cell: a value, a smaller second line, and the exact number for scripts (`data-value`)."""

    text: str
    sub: str = ""
    bold: bool = False
    colour: str = ""
    value: float | None = None
    is_number: bool = False


@dataclass(frozen=True)
class Header:
    """One header cell that spans `span` columns."""

    text: str
    span: int = 1
    is_number: bool = False


@dataclass(frozen=True)
class TableBlock:
    """A table with one or two header rows; the first cell of each row names the row."""

    caption: str
    headers: list[list[Header]]
    rows: list[list[Cell]]
    element_id: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class FigureBlock:
    """A figure with the sentence for those who can't see it, and the caption."""

    figure: RenderedFigure
    alt: str
    caption: str
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class TextBlock:
    """A paragraph; `role` is 'prose', 'lead' (the headline) or 'missing' (not measured, and why)."""

    text: str
    role: str = "prose"
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class ListBlock:
    """Terms and what they mean."""

    items: list[tuple[str, str, str]]  # term, meaning, colour
    kind: str = field(default="list", init=False)


@dataclass(frozen=True)
class CodeBlock:
    """Preformatted text under a summary line."""

    title: str
    text: str
    is_open: bool = True
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Answer:
    """One completion, clipped; `note` says what was cut."""

    who: str
    colour: str
    verdict: str
    text: str
    note: str


@dataclass(frozen=True)
class AnswersBlock:
    """One problem with what several students and branches made of it."""

    title: str
    question: str
    gold: str
    answers: list[Answer]
    is_open: bool
    kind: str = field(default="answers", init=False)


@dataclass(frozen=True)
class Section:
    """One chapter; `short` is its name in the navigation."""

    element_id: str
    title: str
    short: str
    blocks: list[Any]


def missing(reason: str) -> TextBlock:
    """The note in place of a table or figure that the run gives no data for."""
    return TextBlock(f"Not measured in this run: {reason}.", role="missing")


def simple_table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], element_id: str = ""
) -> TableBlock:
    """A table from plain values: strings to the left, numbers to the right with thousands separators."""
    listed = [[_cell(value) for value in row] for row in rows]
    numeric = [any(row[index].is_number for row in listed) for index in range(len(columns))]
    headers = [[Header(visible(name), 1, number) for name, number in zip(columns, numeric, strict=True)]]
    return TableBlock(caption, headers, listed, element_id)


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None or value != value:
        return Cell("—", is_number=True)
    if isinstance(value, bool):
        return Cell(str(value))
    if isinstance(value, (int, float)) or hasattr(value, "dtype"):
        number = float(value)
        text = f"{number:,.0f}" if number.is_integer() else f"{number:,.4g}"
        return Cell(text.replace("-", "−"), is_number=True)
    return Cell(visible(value))
