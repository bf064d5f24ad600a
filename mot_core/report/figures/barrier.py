"""Loss along the lines start – branch – merge: whether a merge lies in the basin of its branches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mot_core.report.figures.drawing import label, line_style, new_figure, shared_legend
from mot_core.report.figures.merging import branches_of, change_panel, first_and_last, mot_rows, round_axis
from mot_core.report.measures import Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = ["from", "to"]
_DIRECT = (0, (1, 1.5))  # dots of the line that passes by the branches


def barrier_lines(frame: pd.DataFrame) -> pd.DataFrame:
    """`merge_barrier` with numbers, and the mean over seeds of loss and barrier, by method, round, line and point."""
    numbers = frame.assign(
        **{name: pd.to_numeric(frame[name]).astype(float) for name in ("share", "loss", "barrier")},
        **{name: frame[name].astype(str) for name in _LINE},
        round=pd.to_numeric(frame["round"]).astype(int),
    )
    keys = ["method", "round", *_LINE, "share"]
    return numbers.groupby(keys, sort=False)[["loss", "barrier"]].mean().reset_index()


def merge_barrier(measures: Measures, budget: str) -> Figure | None:
    """MoT's first and last merge: loss along their lines; barriers by round; the change in home accuracy."""
    frame = mot_rows(measures.results.merge_barrier, budget)
    if frame.empty:
        return None
    lines = barrier_lines(frame)
    branches = branches_of([*lines["from"], *lines["to"]], measures)
    branches.remove("start")
    rounds = sorted(lines["round"].unique())
    shown_rounds = first_and_last(rounds)
    figure = new_figure(height=3.4)
    panels = figure.subplots(1, len(shown_rounds) + 2, squeeze=False)[0]
    for axes, round_index in zip(panels, shown_rounds, strict=False):
        _loss_panel(axes, lines[lines["round"] == round_index], branches, measures)
        axes.set_title(f"Round {round_index}")
    panels[0].set_ylabel("loss (nats a completion token)")
    handles = list(panels[0].get_lines())
    _barrier_panel(panels[-2], lines, branches, measures)
    change_panel(panels[-1], mot_rows(measures.home_change_by_round, budget), ["mot"], measures, rounds)
    shared_legend(figure, handles)
    return figure


def _loss_panel(axes: Axes, rows: pd.DataFrame, branches: list[str], measures: Measures) -> None:
    """Start, branch and merge at 0, 1 and 2; the line past the branches spans all of it."""
    for branch in branches:
        look = line_style(measures.palette.teacher(branch))
        if branch == "merged":
            direct = _points(rows, "start", "merged", 0.0, 2.0)
            axes.plot(*direct, **{**look, "linestyle": _DIRECT}, label="start to merged, straight")
            continue
        first, second = _points(rows, "start", branch, 0.0, 1.0), _points(rows, branch, "merged", 1.0, 2.0)
        x, loss = [*first[0], *second[0][1:]], [*first[1], *second[1][1:]]
        axes.plot(x, loss, **look, label=f"by way of {label(branch)}")
    axes.set_xticks([0, 1, 2], ["start", "branch", "merged"])
    axes.set_xlim(-0.15, 2.15)
    axes.set_xlabel("straight lines between weights")


def _points(rows: pd.DataFrame, start: str, end: str, left: float, right: float) -> tuple[list[float], list[float]]:
    line = rows[(rows["from"] == start) & (rows["to"] == end)].sort_values("share")
    return [left + (right - left) * share for share in line["share"]], line["loss"].tolist()


def _barrier_panel(axes: Axes, lines: pd.DataFrame, branches: list[str], measures: Measures) -> None:
    """By round, the higher barrier of a branch's two lines, and that of the straight line."""
    barriers = lines.drop_duplicates(["round", *_LINE])
    for branch in branches:
        own = (barriers[_LINE] == branch).any(axis=1) if branch != "merged" else barriers["from"] == "start"
        if branch == "merged":
            own &= barriers["to"] == "merged"
        highest = barriers[own].groupby("round")["barrier"].max()
        style: dict[str, Any] = line_style(measures.palette.teacher(branch))
        if branch == "merged":
            style["linestyle"] = _DIRECT
        axes.plot(highest.index, highest.to_numpy(), **style)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("barrier: highest rise over a\nstraight line (nats a token)")
    round_axis(axes, lines["round"])
