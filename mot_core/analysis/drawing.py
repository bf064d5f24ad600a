"""What the studies' figures share: points with intervals, differences on a zero line, one look a series.

Invariant: a series has one colour, marker and dash in a figure; an interval that is not known is not drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mot_core.analysis.outcomes import Difference, Estimate
from mot_core.report.figures.drawing import INK, label, line_style, new_figure, whiskers
from mot_core.report.palette import Look, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's set, told apart with any common colour blindness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ("-", "--", "-.", ":")


def look(index: int) -> Look:
    """The look of the index-th series of a figure."""
    return Look(
        _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)], _DASHES[index // 3 % len(_DASHES)], 1.6
    )


def looks_of(names: Sequence[str], teachers: Sequence[str] = ()) -> dict[str, Look]:
    """Looks by name: a method's own where it has one everywhere, else by order, in colours that those leave."""
    palette = Palette(names, teachers)
    fixed = {name: palette.method(name) for name in names if palette.has_own(name)}
    taken = {one.colour for one in fixed.values()}
    free = [index for index in range(len(_COLOURS)) if look(index).colour not in taken] or [0]
    others = (_again(free[place % len(free)], place // len(free)) for place in itertools.count())
    return {name: fixed.get(name) or next(others) for name in names}


def _again(index: int, turn: int) -> Look:
    """The look of a series, with a later marker where its colour is used again."""
    return replace(look(index), marker=_MARKERS[(index + turn) % len(_MARKERS)])


def panels(count: int, height: float = 3.3, max_columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, in rows of at most `max_columns`."""
    columns = min(max_columns, count)
    rows = -(-count // columns)
    figure = new_figure(height=0.5 + height * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid[:count]


def curve(
    axes: Axes, xs: Sequence[float], values: Sequence[Estimate], style: Look, name: str, *, dodge: float = 0.0
) -> None:
    """A line of estimates in percent, with whiskers; `dodge` moves it sideways, in units of x (or, on a logarithmic
    axis, as a share)."""
    scale = axes.get_xscale()
    places = [x * (1.0 + dodge) if scale == "log" else x + dodge for x in xs]
    axes.plot(places, [100 * value.mean for value in values], label=label(name, 30), **line_style(style))
    for x, value in zip(places, values, strict=True):
        whiskers(axes, x, 100 * value.low, 100 * value.high, style.colour)


def bars(
    axes: Axes, names: Sequence[str], values: Sequence[Estimate], looks: Mapping[str, Look], keys: Sequence[str]
) -> None:
    """One point with its interval a name, from top to bottom; `keys` are what `looks` knows them by."""
    for place, (key, value) in enumerate(zip(keys, values, strict=True)):
        style = looks.get(key) or look(place)
        axes.plot([100 * value.low, 100 * value.high], [place, place], color=style.colour, linewidth=1.6, alpha=0.6)
        axes.plot(
            100 * value.mean, place, marker="o" if style.marker == "_" else style.marker, color=style.colour,
            markersize=6, linestyle="", markeredgecolor="white", markeredgewidth=0.5,
        )  # fmt: skip
    _rows(axes, names)


def differences(axes: Axes, found: Sequence[Difference], names: Sequence[str]) -> None:
    """Differences in points against zero, from top to bottom: filled where the corrected test decides."""
    axes.axvline(0.0, color=INK, linewidth=0.8)
    for place, one in enumerate(found):
        colour = {"higher": "#009E73", "lower": "#D55E00", "open": "#767676"}[one.verdict]
        axes.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=1.6, alpha=0.7)
        axes.plot(
            100 * one.delta, place, marker="o", markersize=6, linestyle="", color=colour, markeredgewidth=1.2,
            markerfacecolor=colour if one.verdict != "open" else "white",
        )  # fmt: skip
    _rows(axes, names)
    axes.set_xlabel("difference in points")


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [label(name, 44) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    axes.grid(axis="y", visible=False)


def legend(axes: Axes, **where: Any) -> None:
    """A legend inside the panel, where it hides least."""
    axes.legend(handlelength=2.2, **{"loc": "best", **where})
