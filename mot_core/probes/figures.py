"""Figures of what probes measure: a student's confidence by class of token, and the loss around it.

Invariant: what a figure shows are the rows that it is given; rows of several students (`student`) share its panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mot_core.analysis.drawing import legend, look
from mot_core.probes.rows import Rows, pooled
from mot_core.probes.tokens import CLASSES
from mot_core.report.figures.drawing import INK, label, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {
    "mean_log_prob": "Log-probability of the token (nats)", "mean_confidence": "Confidence: largest probability",
    "mean_entropy": "Entropy (nats)",
}  # fmt: skip
_CLASS_NAMES = {"shared": "shared", "specific": "one teacher's", "answer": "answer"}
_NUM_LEVELS = 12


def confidence_panel(axes: Axes, rows: Rows, measure: str) -> None:
    """One of `MEASURES` from rows of `confidence_rows`, by class of token. Several students: their means over all teachers'
    tokens, small marks for the teachers; one student: a series a teacher."""
    students = list(dict.fromkeys(row["student"] for row in rows))
    by = "student" if len(students) > 1 else "teacher"
    series = list(dict.fromkeys(row[by] for row in rows))
    width = 0.6 / len(series)
    for index, name in enumerate(series):
        own = [row for row in rows if row[by] == name]
        offset = (index - (len(series) - 1) / 2) * width
        style = line_style(look(index))
        means = {row["class"]: row[measure] for row in pooled(own, ("class",))}
        places = [place for place, kind in enumerate(CLASSES) if kind in means]
        if by == "student":
            axes.plot(
                [CLASSES.index(row["class"]) + offset for row in own], [row[measure] for row in own], linestyle="",
                marker=look(index).marker, markersize=3, color=look(index).colour, alpha=0.45, markeredgewidth=0,
            )  # fmt: skip
        axes.plot(
            [place + offset for place in places], [means[CLASSES[place]] for place in places],
            label=label(name, 30), **{**style, "linestyle": "", "markersize": style["markersize"] * 1.3},
        )  # fmt: skip
    axes.set_xticks(range(len(CLASSES)), [_CLASS_NAMES[kind] for kind in CLASSES])
    axes.set_xlim(-0.5, len(CLASSES) - 0.5)
    axes.set_title(_TITLES[measure])
    axes.set_xlabel("tokens of rationales" + ("; small: each teacher's" if by == "student" else ""))
    legend(axes)


def lines_panel(axes: Axes, rows: Rows, students: Sequence[str]) -> None:
    """Losses along lines from students, a line each."""
    keys = list(dict.fromkeys((row["student"], row["line"], row["direction"]) for row in rows))
    for index, (student, line, direction) in enumerate(keys):
        own = [row for row in rows if (row["student"], row["line"]) == (student, line)]
        name = f"{label(student, 20)}, {label(direction, 20)}" if len(students) > 1 else label(direction, 30)
        axes.plot([row["x"] for row in own], [row["loss"] for row in own], label=name, **line_style(look(index)))
    axes.axvline(0.0, color=INK, linewidth=0.7, zorder=1)
    axes.set_ylabel("loss (nats a completion token)")
    legend(axes)


def sharpness_panel(axes: Axes, rows: Rows, students: Sequence[str]) -> None:
    """Mean rise by distance, both logarithmic where all rises are above zero: a bowl is a line of slope 2."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    for index, student in enumerate(students):
        own = sorted((row for row in rows if row["student"] == student), key=lambda row: float(row["distance"]))
        axes.errorbar(
            [row["distance"] for row in own], [row["mean_rise"] for row in own],
            yerr=[row["standard_error"] for row in own], elinewidth=0.9, label=label(student, 30), **line_style(look(index)),
        )  # fmt: skip
    if len({row["distance"] for row in rows}) > 1 and all(row["mean_rise"] > row["standard_error"] for row in rows):
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({row["distance"] for row in rows})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.minorticks_off()
    else:
        axes.axhline(0.0, color=INK, linewidth=0.7, zorder=1)
    axes.set_title("Sharpness (± standard error)")
    axes.set_xlabel("distance relative to the weights")
    axes.set_ylabel("mean rise of the loss (nats a token)")
    legend(axes)


def plane_panel(axes: Axes, rows: Rows, student: str, says_whose: bool) -> None:
    """Filled contours of the loss, with the students of the plane on it."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter

    points = [row for row in rows if row["measure"] == "plane"]
    marks = [row for row in rows if row["measure"] == "mark"]
    xs, ys = sorted({row["x"] for row in points}), sorted({row["y"] for row in points})
    losses = {(row["x"], row["y"]): row["loss"] for row in points}
    grid = [[losses[x, y] for x in xs] for y in ys]
    low, high = min(losses.values()), max(losses.values())
    # Far from any student the loss is many times that of the students, which lie where it is low.
    levels = [low * (high / low) ** (step / _NUM_LEVELS) for step in range(_NUM_LEVELS + 1)] if low < high else None
    filled = axes.contourf(xs, ys, grid, levels=levels, cmap="viridis_r", norm=LogNorm(low, high) if levels else None)
    axes.contour(xs, ys, grid, levels=levels, colors="white", linewidths=0.4, alpha=0.7)
    figure = axes.figure
    shown = FuncFormatter(lambda value, place: f"{value:.3g}")
    figure.colorbar(filled, ax=axes, label="loss (nats a token)", format=shown, ticks=levels[::3] if levels else None)
    shown_marks = [(0.0, 0.0, label(student, 20), "*")]
    for row in marks:
        if xs[0] <= row["x"] <= xs[-1] and ys[0] <= row["y"] <= ys[-1]:
            inside = row["off_plane"] < 0.01
            off = "" if inside else f", {100 * row['off_plane']:.0f} % off"
            shown_marks.append((row["x"], row["y"], f"{label(row['direction'], 24)}{off}", "o" if inside else "s"))
    _marked(axes, shown_marks)
    axes.set_xlabel(f"towards {label(points[0]['x_direction'])}")
    axes.set_ylabel(f"towards {label(points[0]['y_direction'])}")
    axes.set_title(f"Plane around {label(student, 20)}" if says_whose else "Plane")
    axes.grid(visible=False)


def _marked(axes: Axes, marks: Sequence[tuple[float, float, str, str]]) -> None:
    """Students on a plane, `(x, y, name, marker)`, numbered, with their names below. Squares lie off the plane, by the share
    of their distance that is named."""
    for number, (x, y, name, marker) in enumerate(marks, start=1):
        axes.plot(
            x, y, marker=marker, color="white", markeredgecolor=INK, markeredgewidth=1.0, linestyle="", clip_on=False,
            markersize=17 if marker == "*" else 11, zorder=5, label=f"{number} {name}",
        )  # fmt: skip
        axes.annotate(str(number), (x, y), ha="center", va="center", fontsize=6.5, zorder=6, annotation_clip=False)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=7, handlelength=1.0, columnspacing=1.0,
        markerscale=0.5,
    )  # fmt: skip
