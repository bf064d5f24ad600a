"""Training loss along the path, by branch."""

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
    """Mean loss over seeds at each step, with `path_step` counted through the rounds.

    `panel` gathers the STD students of a budget in one; `line` is the branch.
    """
    frame = measures.results.training.copy()
    for name in ("round", "step", "loss"):
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
    return frame.groupby(keys, sort=True)["loss"].mean().reset_index()


def training_loss(measures: Measures, budget: str) -> Figure | None:
    """One panel a method: a line per branch, a thin vertical line at each merge."""
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
    shared_legend(figure, list(drawn.values()))
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
        x, y = _thinned(of_line["path_step"].to_numpy(dtype=float), of_line["loss"].to_numpy(dtype=float))
        (drawn_line,) = axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.9, label=label(line))
        drawn.setdefault(line, drawn_line)
    ends = rows.groupby("round")["path_step"].max().sort_values().iloc[:-1]
    for end in ends:
        axes.axvline(end + 0.5, color="#BBBBBB", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0.5)


def _thinned(x: Any, y: Any) -> tuple[Any, Any]:
    bins = -(-len(x) // MAX_POINTS)
    if bins <= 1:
        return x, y
    starts = np.arange(0, len(x), bins)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
