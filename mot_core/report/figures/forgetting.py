"""What was gained at home against what was lost on the panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mot_core.report.figures.accuracy import legend_handles
from mot_core.report.figures.drawing import label, marker_size, new_figure, shared_legend
from mot_core.report.measures import Measures
from mot_core.report.palette import budget_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def forgetting_table(measures: Measures) -> pd.DataFrame:
    """Budget, method, and for home and panel the accuracy, its change from base and the change's interval."""
    changes = measures.change_from_base
    home, panel = (changes[changes["role"] == role].drop(columns="role") for role in ("home", "panel"))
    return home.merge(panel, on=["budget", "method"], suffixes=("_home", "_panel"))


def forgetting(measures: Measures) -> Figure | None:
    """One panel a budget: change of panel accuracy over change of home accuracy, both from base."""
    table = forgetting_table(measures)
    table = table[table["method"] != "base"].dropna(subset=["change_home", "change_panel"])
    budgets = [budget for budget in measures.budgets if (table["budget"] == budget).any()]
    if not budgets:
        return None
    figure = new_figure(height=4.1)
    grid = figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, budget in zip(grid, budgets, strict=True):
        _changes_panel(axes, table[table["budget"] == budget], measures)
        axes.set_title(label(budget_name(budget)))
        axes.set_xlabel("change in home accuracy from base (points)")
    grid[0].set_ylabel("change in panel accuracy\nfrom base (points)")
    shared_legend(
        figure,
        legend_handles(measures.palette, table["method"].unique(), lines=False),
    )
    return figure


def _changes_panel(axes: Axes, rows: pd.DataFrame, measures: Measures) -> None:
    axes.axhline(0, color="#888888", linewidth=0.9)
    axes.axvline(0, color="#888888", linewidth=0.9)
    axes.grid(axis="both")
    for _, row in rows.iterrows():
        look = measures.palette.method(row["method"])
        x, y = 100 * row["change_home"], 100 * row["change_panel"]
        thin: dict[str, Any] = {"color": look.colour, "linewidth": 0.9, "alpha": 0.7, "zorder": 1.5}
        axes.plot([100 * row["ci_low_home"], 100 * row["ci_high_home"]], [y, y], **thin)
        axes.plot([x, x], [100 * row["ci_low_panel"], 100 * row["ci_high_panel"]], **thin)
        axes.plot(
            x, y, marker=look.marker, color=look.colour, linestyle="", markersize=marker_size(look, 7.5),
            markeredgecolor="white", zorder=3,
        )  # fmt: skip
