"""Training loss along the path, by branch, and the held-out loss where an early stop looked at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mot_core.report.figures.drawing import label, new_figure, shared_legend
from mot_core.report.measures import Measures
from mot_core.report.palette import method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 240  # a line is drawn from at most this many means of consecutive steps
_MAX_COLUMNS = 3


def losses_along_path(measures: Measures) -> pd.DataFrame:
    """Mean loss and held-out loss over seeds at each step, with `path_step` counted through the rounds.

    `panel` gathers the STD students of a budget in one; `line` is the branch.
    """
    frame = measures.results.training.copy()
    for name in ("round", "step", "loss", "held_out_loss"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    frame = frame.dropna(subset=["step", "loss"])
    frame["round"] = frame["round"].fillna(1)
    for name in ("budget", "method", "branch"):
        frame[name] = frame[name].astype(str)
    alone = frame["method"].str.startswith("std/")
    frame["panel"] = frame["method"].where(~alone, "std")
    frame["line"] = frame["branch"].where(~alone, frame["method"].str.removeprefix("std/"))
    frame["path_step"] = frame["step"] + _steps_before(frame)
    keys = ["budget", "panel", "line", "round", "path_step"]
    return frame.groupby(keys, sort=True)[["loss", "held_out_loss"]].mean().reset_index()


def training_loss(measures: Measures, budget: str) -> Figure | None:
    """One panel a method: a line per branch, rings at its held-out losses, a thin vertical line at each merge."""
    if measures.results.training.empty:
        return None
    losses = losses_along_path(measures)
    losses = losses[losses["budget"] == budget]
    order = ["std", *(method for method in measures.palette.methods if not method.startswith("std/"))]
    panels = [panel for panel in order if (losses["panel"] == panel).any()]
    if not panels:
        return None
    columns = min(_MAX_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(height=0.75 + 2.3 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    drawn: dict[str, Any] = {}
    for panel, axes in zip(panels, grid.ravel(), strict=False):
        _loss_panel(axes, losses[losses["panel"] == panel], measures, drawn)
        axes.set_title("STD, one student a teacher" if panel == "std" else label(method_name(panel)))
        axes.set_xlabel("optimizer steps along the path")
        axes.tick_params(labelleft=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("loss (nats a completion token)")
    handles = list(drawn.values())
    if losses["held_out_loss"].notna().any():
        handles.append(_ring("#444444"))
    shared_legend(figure, handles)
    return figure


def _steps_before(frame: pd.DataFrame) -> Any:
    """Steps of the earlier rounds, to add where `step` starts anew in each round (0 where it runs on)."""
    keys = ["budget", "method", "seed", "branch"]
    ends = frame.groupby([*keys, "round"])["step"].agg(["min", "max"]).reset_index()
    previous_end = ends.groupby(keys)["max"].shift().fillna(0)
    restarts = (ends["min"] <= previous_end) & (previous_end > 0)
    lengths = ends["max"] - ends["min"] + 1
    offset = lengths.groupby([ends[key] for key in keys]).cumsum() - lengths
    restarting = restarts.groupby([ends[key] for key in keys]).transform("any")
    ends["offset"] = np.where(restarting, offset, 0)
    return frame[[*keys, "round"]].merge(ends, on=[*keys, "round"], how="left")["offset"].to_numpy()


def _loss_panel(axes: Axes, rows: pd.DataFrame, measures: Measures, drawn: dict[str, Any]) -> None:
    lines = list(dict.fromkeys([*measures.palette.teachers, *rows["line"]]))
    present = [line for line in lines if (rows["line"] == line).any()]
    for index, line in enumerate(present):
        of_line = rows[rows["line"] == line].sort_values("path_step", kind="stable")
        is_teacher = line in measures.palette.teachers
        colour = measures.palette.teacher(line).colour if is_teacher else f"{0.25 + 0.5 * index / len(present):.3f}"
        x, y = _drawn_points(of_line["path_step"].to_numpy(dtype=float), of_line["loss"].to_numpy(dtype=float))
        (drawn_line,) = axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.9, label=label(line))
        drawn.setdefault(line, drawn_line)
        looks = of_line.dropna(subset=["held_out_loss"])
        for _, of_round in looks.groupby("round"):
            ring = _ring(colour)
            ring.set_data(of_round["path_step"], of_round["held_out_loss"])
            axes.add_line(ring)
    axes.autoscale_view()
    # A round's first step, not the last of the one before: its branches may all have ended early.
    starts = rows.groupby("round")["path_step"].min().sort_values().iloc[1:]
    for start in starts:
        axes.axvline(start - 0.5, color="#BBBBBB", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0.5)


def _ring(colour: str) -> Any:
    """The held-out losses of one branch, or their entry in the legend."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=colour, marker="o", markerfacecolor="white", markeredgecolor=colour, markersize=4.5, linewidth=0.8,
        linestyle=(0, (3, 2)), label="held-out loss",
    )  # fmt: skip


def _drawn_points(x: Any, y: Any) -> tuple[Any, Any]:
    """At most about `MAX_POINTS` means of consecutive steps; a gap where steps are missing, as after an early stop."""
    size = -(-len(x) // MAX_POINTS)
    parts = []
    for part in np.split(np.stack([x, y]), np.flatnonzero(np.diff(x) > 1) + 1, axis=1):
        starts = np.arange(0, part.shape[1], size)
        counts = np.diff(np.append(starts, part.shape[1]))
        parts += [np.add.reduceat(part, starts, axis=1) / counts, np.full((2, 1), np.nan)]
    joined = np.concatenate(parts[:-1], axis=1)
    return joined[0], joined[1]
