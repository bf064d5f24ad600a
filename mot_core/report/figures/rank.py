"""Effective rank of updates: in how many directions branches moved, and how many of them the merge keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mot_core.report.figures.drawing import label, line_style, new_figure, shared_legend
from mot_core.report.figures.merging import (
    branches_of,
    change_panel,
    first_and_last,
    layer_order,
    mot_rows,
    round_axis,
)
from mot_core.report.measures import Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def mean_ranks(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean effective rank over the sampled matrices and the seeds of each group."""
    numbers = frame.assign(effective_rank=pd.to_numeric(frame["effective_rank"]).astype(float))
    return numbers.groupby(by, sort=False)["effective_rank"].mean().reset_index()


def merge_rank(measures: Measures, budget: str) -> Figure | None:
    """MoT's branches and merges: effective rank by round, by place at the first and last; the change in accuracy."""
    frame = mot_rows(measures.results.merge_rank, budget)
    if frame.empty:
        return None
    frame = frame.assign(branch=frame["branch"].astype(str))
    branches = branches_of(frame["branch"], measures)
    rounds = sorted(frame["round"].unique())
    shown_rounds = first_and_last(rounds)
    figure = new_figure(height=3.8)
    panels = figure.subplots(1, len(shown_rounds) + 2, squeeze=False)[0]
    by_round = mean_ranks(frame, ["branch", "round"])
    for branch in branches:
        rows = by_round[by_round["branch"] == branch].sort_values("round")
        style = line_style(measures.palette.teacher(branch))
        panels[0].plot(rows["round"], rows["effective_rank"], **style, label=label(branch))
    panels[0].set_title("Mean, by round")
    panels[0].set_ylabel("effective rank of the update\n(directions)")
    round_axis(panels[0], rounds)
    by_place = mean_ranks(frame, ["branch", "round", "layer", "kind"])
    for axes, round_index in zip(panels[1:], shown_rounds, strict=False):
        _by_place(axes, by_place[by_place["round"] == round_index], branches, measures)
        axes.set_title(f"By matrix, round {round_index}")
    for axes in panels[:-1]:
        axes.set_ylim(0, 1.05 * float(by_place["effective_rank"].max() or 1.0))
    change_panel(panels[-1], mot_rows(measures.home_change_by_round, budget), ["mot"], measures, rounds)
    shared_legend(figure, list(panels[0].get_lines()))
    return figure


def _by_place(axes: Axes, rows: pd.DataFrame, branches: list[str], measures: Measures) -> None:
    """Markers only: neighbours on this axis are other matrices, not further values of one."""
    places = [
        (layer, kind)
        for layer in layer_order(rows["layer"])
        for kind in sorted(rows.loc[rows["layer"] == layer, "kind"].unique())
    ]
    positions = {place: index for index, place in enumerate(places)}
    for index, branch in enumerate(branches):
        of_branch = rows[rows["branch"] == branch]
        x = np.array([positions[place] for place in zip(of_branch["layer"], of_branch["kind"], strict=True)])
        look = {**line_style(measures.palette.teacher(branch)), "linestyle": "none"}
        shift = 0.5 * ((index + 0.5) / len(branches) - 0.5)
        axes.plot(x + shift, of_branch["effective_rank"], **look)
    names = [label(f"{str(layer).removeprefix('layer ')} {kind}", 14) for layer, kind in places]
    axes.set_xticks(range(len(places)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_xlabel("layer and kind")
