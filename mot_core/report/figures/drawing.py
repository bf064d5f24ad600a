"""The figure style, and a figure as bytes: deterministic, without dates, laid out once for both formats.

Invariant: equal inputs give equal bytes. Matplotlib's global state is not touched: figures are made without
pyplot, and the style is a context that `style()` opens once around all of a report's figures.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mot_core.report.palette import Look
from mot_core.report.text import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#222222"
PAGE_WIDTH = 10.4  # inches; at the report's width, a figure's 9-point text reads as about 10 pixels

_STYLE: dict[Any, Any] = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "font.family": "DejaVu Sans", "font.size": 9.0, "axes.titlesize": 9.5, "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5, "figure.titlesize": 10.0,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 7.0,
    "axes.edgecolor": "#555555", "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": "#444444", "ytick.color": "#444444",
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#E6E6E6", "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False, "lines.markersize": 4.5, "lines.solid_capstyle": "round",
    "text.parse_math": False, "axes.unicode_minus": True, "svg.hashsalt": "mot-report",
    "svg.fonttype": "path", "path.simplify": True,
}  # fmt: skip


@dataclass(frozen=True)
class RenderedFigure:
    """A figure in both formats."""

    name: str
    svg: bytes
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """The report's matplotlib settings, for the length of the block."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float, width: float = PAGE_WIDTH) -> Figure:
    """An empty figure on the Agg canvas, laid out by constraints."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    spaces = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.04, wspace=0.03)
    figure = Figure(figsize=(width, height), layout=spaces)
    FigureCanvasAgg(figure)
    return figure


def rendered(name: str, figure: Figure) -> RenderedFigure:
    """Both formats of a finished figure."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is done; saving would do it twice more
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    return RenderedFigure(name, svg.getvalue(), png.getvalue())


def label(value: object, max_chars: int = 28) -> str:
    """A name that may come from a user, as one short line that the figure font can draw."""
    return drawable(value, _font_characters(), max_chars)


def marker_size(look: Look, points: float) -> float:
    """A marker's size such that all shapes look equally heavy: stars fill less of their square."""
    return points * {"*": 1.6, "X": 1.15, "o": 1.0, "s": 0.9, "D": 0.85}.get(look.marker, 1.15)


def line_style(look: Look) -> dict[str, Any]:
    """Line and marker arguments of a look."""
    return {
        "color": look.colour, "marker": look.marker, "linestyle": look.dashes, "linewidth": look.width,
        "markeredgecolor": "white", "markeredgewidth": 0.5, "markersize": marker_size(look, 5.5),
    }  # fmt: skip


def shared_legend(figure: Figure, handles: list[Any], per_row: int = 7) -> None:
    """One legend for all panels, above them, outside every axis."""
    if handles:
        figure.legend(
            handles=handles, loc="outside upper left", ncols=min(per_row, len(handles)), handlelength=2.4,
            columnspacing=1.6, borderaxespad=0.2,
        )  # fmt: skip


def whiskers(axes: Axes, x: float, low: Any, high: Any, colour: str) -> None:
    """A thin vertical interval; nothing where the interval is unknown."""
    if low is not None and high is not None and low == low and high == high:
        axes.plot([x, x], [low, high], color=colour, linewidth=0.9, alpha=0.55, solid_capstyle="butt", zorder=1.5)


def whole_number_axis(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def scaled(largest: float) -> tuple[float, str]:
    """A power of 1,000 to divide by, and how the axis label says so (' (×10⁹)')."""
    power = 0
    while largest >= 10_000 and power < 30:
        largest, power = largest / 1000, power + 3
    return (
        10.0**power,
        f" (×10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))})" if power else "",
    )


@functools.cache
def _font_characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())
