"""Accuracy by round, and final accuracy against what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mot_core.report.figures.drawing import (
    label,
    line_style,
    marker_size,
    new_figure,
    scaled,
    shared_legend,
    whiskers,
    whole_number_axis,
)  # fmt: skip
from mot_core.report.measures import Measures
from mot_core.report.palette import Palette, budget_name, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COSTS = (
    ("teacher_tokens", "teachers' completion tokens"),
    ("training_flops", "training FLOPs"),
    ("inference_tokens_per_problem", "inference tokens a problem"),
)
_MAX_COLUMNS = 3
_DODGE_SHARE = 0.3  # of one round: how far apart the methods' intervals are spread
_COST_DODGE_SHARE = 0.07  # of the largest cost: equal costs would hide each other


def accuracy_by_round(measures: Measures, budget: str) -> Figure | None:
    """One panel a benchmark: a line per method that was followed, else a marker; base's level."""
    points = measures.curves[measures.curves["budget"] == budget]
    panels = [benchmark for benchmark, _ in measures.benchmarks if (points["benchmark"] == benchmark).any()]
    if not panels:
        return None
    columns = min(_MAX_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(height=0.75 + 2.75 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for benchmark, axes in zip(panels, grid.ravel(), strict=False):
        panel = points[points["benchmark"] == benchmark]
        _rounds_panel(axes, panel, measures.palette)
        first = panel.iloc[0]
        axes.set_title(f"{label(benchmark)} ({first['role']}, {first['split']})")
        axes.set_xlabel("round")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (avg@k, %)")
    shared_legend(figure, legend_handles(measures.palette, points["method"].unique()))
    return figure


def legend_handles(palette: Palette, methods: Any, *, lines: bool = True) -> list[Any]:
    """Legend entries in the palette's order: lines with markers, or the markers alone."""
    from matplotlib.lines import Line2D

    shown = [method for method in palette.methods if method in set(methods)]
    entries = [
        Line2D([], [], label=label(method_name(method), 22), **_method_line(palette, method)) for method in shown
    ]
    if not lines:
        for method, entry in zip(shown, entries, strict=True):
            entry.set(linestyle="", marker="o" if method == "base" else palette.method(method).marker)
            entry.set_markersize(marker_size(palette.method(method), 7.0))
    return entries


def accuracy_against_cost(measures: Measures) -> Figure | None:
    """Pooled home accuracy of the final students over three costs; open markers are the larger budget."""
    accuracy = measures.change_from_base
    accuracy = accuracy[accuracy["role"] == "home"]
    cost = measures.results.cost
    if cost.empty or accuracy.empty:
        return None
    costs = cost.assign(**{name: pd.to_numeric(cost[name], errors="coerce") for name, _ in _COSTS})
    means = costs.groupby(["budget", "method"], sort=False)[[name for name, _ in _COSTS]].mean().reset_index()
    merged = accuracy.merge(means, on=["budget", "method"])
    figure = new_figure(height=3.9)
    for axes, (column, title) in zip(figure.subplots(1, 3, sharey=True), _COSTS, strict=True):
        _cost_panel(axes, merged, column, title, measures)
    figure.axes[0].set_ylabel("home accuracy (%)")
    handles = legend_handles(measures.palette, merged["method"].unique(), lines=False)
    shared_legend(figure, [*handles, *_budget_handles(measures.budgets)])
    return figure


def _rounds_panel(axes: Axes, panel: pd.DataFrame, palette: Palette) -> None:
    methods = [method for method in palette.methods if (panel["method"] == method).any() and method != "base"]
    rounds = panel.loc[panel["method"] != "base", "round"]
    dodge = _DODGE_SHARE if rounds.nunique() > 1 else 1.0
    for index, method in enumerate(methods):
        look = palette.method(method)
        rows = panel[panel["method"] == method]
        shift = dodge * ((index + 0.5) / len(methods) - 0.5)
        x = rows["round"].to_numpy(dtype=float) + shift
        axes.plot(x, 100 * rows["mean"], zorder=3 if method == "mot" else 2, **line_style(look))
        for position, low, high in zip(x, rows["ci_low"], rows["ci_high"], strict=True):
            whiskers(axes, position, 100 * low, 100 * high, look.colour)
    base = panel[panel["method"] == "base"]
    if len(base):
        row, colour = base.iloc[0], palette.method("base").colour
        axes.axhspan(100 * row["ci_low"], 100 * row["ci_high"], color=colour, alpha=0.12, linewidth=0)
        axes.axhline(100 * row["mean"], color=colour, linewidth=1.2, linestyle=(0, (1, 1)))
    if rounds.nunique() > 1:
        axes.set_xlim(min(rounds.min(), 1) - 0.4, rounds.max() + 0.4)
    elif len(rounds):
        axes.set_xlim(rounds.max() - 0.7, rounds.max() + 0.7)
    whole_number_axis(axes)


def _method_line(palette: Palette, method: str) -> dict[str, Any]:
    style = line_style(palette.method(method))
    return style | {"linestyle": (0, (1, 1)), "marker": ""} if method == "base" else style


def _cost_panel(axes: Axes, rows: pd.DataFrame, column: str, title: str, measures: Measures) -> None:
    drawn = rows.dropna(subset=[column])
    largest = float(drawn[column].max()) if len(drawn) else 1.0
    factor, suffix = scaled(largest)
    for _, row in drawn.iterrows():
        method, budget = row["method"], row["budget"]
        look = measures.palette.method(method)
        _, low, high = measures.home_accuracy[budget, method]
        place = measures.palette.methods.index(method) / len(measures.palette.methods) - 0.5
        x = row[column] / factor + (_COST_DODGE_SHARE * place * largest / factor if method != "base" else 0.0)
        whiskers(axes, x, 100 * low, 100 * high, look.colour)
        filled = budget == measures.budgets[0]
        axes.plot(
            x, 100 * row["mean"], marker="o" if method == "base" else look.marker, linestyle="",
            markersize=marker_size(look, 7.0), color=look.colour, markeredgewidth=1.2,
            markerfacecolor=look.colour if filled else "white", zorder=3,
        )  # fmt: skip
    axes.set_xlabel(title + suffix)
    axes.set_xlim(-0.06 * largest / factor if largest else -0.05, 1.08 * largest / factor or 1.0)
    axes.margins(y=0.08)


def _budget_handles(budgets: list[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    if len(budgets) < 2:
        return []
    return [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            color="#555555",
            markersize=6.5,
            label=label(budget_name(budget)),
            markerfacecolor="#555555" if index == 0 else "white",
        )
        for index, budget in enumerate(budgets)
    ]
