"""What merging does: how far branches drift, how well their updates agree, what accuracy did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mot_core.report.figures.accuracy import legend_handles
from mot_core.report.figures.drawing import (
    label,
    line_style,
    new_figure,
    shared_legend,
    whiskers,
    whole_number_axis,
)  # fmt: skip
from mot_core.report.measures import Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AGREEMENT = (
    ("mean_cosine", "mean pairwise cosine\nof the branches' updates", 1),
    ("sign_agreement", "coordinates whose signs\nall agree (%)", 100),
    ("energy_kept", "update energy kept\nby the merge (%)", 100),
)


def drift_totals(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Drift over all tensors of each group, relative to the start's norm; then the mean over seeds.

    L2 norms add in squares: √Σ drift², over √Σ (drift / relative_drift)², the norm of the start. That of a tensor which
    did not move cannot be told from its row, so it is not among them; where none moved, the drift is 0.
    """
    drift = pd.to_numeric(frame["drift"], errors="coerce").astype(float)
    relative = pd.to_numeric(frame["relative_drift"], errors="coerce").astype(float)
    start = (drift / relative.where(relative > 0)).fillna(0.0)
    squares = frame.assign(drift_squared=drift**2, start_squared=start**2, still=(drift == 0.0) & (relative == 0.0))
    keys = list(dict.fromkeys([*by, "seed"]))
    grouped = squares.groupby(keys, sort=False)
    sums = grouped[["drift_squared", "start_squared"]].sum().assign(still=grouped["still"].all()).reset_index()
    sums["drift"] = np.sqrt(sums["drift_squared"])
    ratios = sums["drift_squared"] / sums["start_squared"].where(sums["start_squared"] > 0)
    sums["relative_drift"] = np.sqrt(ratios.mask(sums["still"], 0.0))
    return sums.groupby(by, sort=False)[["drift", "relative_drift"]].mean().reset_index()


def layer_order(layers: Any) -> list[Any]:
    """Embeddings first, then numbered layers by number, then the rest by name."""
    found = list(dict.fromkeys(layers))

    def key(layer: Any) -> tuple[int, float, str]:
        digits = "".join(c for c in str(layer) if c.isdecimal() and c.isascii())
        if digits:
            return 1, float(digits), str(layer)
        return (0 if "emb" in str(layer).lower() else 2), 0.0, str(layer)

    return sorted(found, key=key)


def branches_of(names: Any, measures: Measures) -> list[str]:
    """The branches among `names`: teachers' in their order, others, and the merge last."""
    found = list(dict.fromkeys(map(str, names)))
    branches = [branch for branch in measures.palette.teachers if branch in found]
    branches += [branch for branch in found if branch not in branches and branch != "merged"]
    return branches + (["merged"] if "merged" in found else [])


def mot_rows(frame: pd.DataFrame, budget: str) -> pd.DataFrame:
    """The rows of MoT under a budget, rounds as integers."""
    rows = frame[(frame["budget"] == budget) & (frame["method"] == "mot")]
    return rows.assign(round=pd.to_numeric(rows["round"]).astype(int))


def first_and_last(rounds: list[Any]) -> list[Any]:
    """The rounds that panels are drawn of; of one round, that."""
    return sorted({rounds[0], rounds[-1]})


def merge_drift(measures: Measures, budget: str) -> Figure | None:
    """MoT's branches and merge: relative drift by round, and by layer at the first and last round."""
    frame = mot_rows(measures.results.merge_drift, budget)
    if frame.empty:
        return None
    frame = frame.assign(branch=frame["branch"].astype(str))
    branches = branches_of(frame["branch"], measures)
    rounds = sorted(frame["round"].unique())
    shown_rounds = first_and_last(rounds)
    figure = new_figure(height=3.4)
    panels = figure.subplots(1, 1 + len(shown_rounds), squeeze=False)[0]
    _drift_by_round(panels[0], drift_totals(frame, ["branch", "round"]), branches, measures)
    by_layer = drift_totals(frame, ["branch", "round", "layer"])
    for axes, round_index in zip(panels[1:], shown_rounds, strict=True):
        _drift_by_layer(axes, by_layer[by_layer["round"] == round_index], branches, measures)
        axes.set_title(f"By layer, round {round_index}")
        axes.set_ylim(0, 105 * float(by_layer["relative_drift"].max() or 1e-9))
    panels[0].set_ylabel("drift from the round's start\n(% of the start's norm)")
    shared_legend(figure, list(panels[0].get_lines()))
    return figure


def merge_agreement(measures: Measures, budget: str) -> Figure | None:
    """Agreement of the branches by round for every method that merges, and the change in home accuracy."""
    frame = measures.results.merge_agreement
    frame = frame[frame["budget"] == budget]
    if frame.empty:
        return None
    names = [name for name, _, _ in _AGREEMENT]
    numbers = frame.assign(**{name: pd.to_numeric(frame[name], errors="coerce") for name in names})
    numbers["round"] = pd.to_numeric(numbers["round"]).astype(int)
    means = numbers.groupby(["method", "round"])[names].mean().reset_index()
    methods = [method for method in measures.palette.methods if (means["method"] == method).any()]
    methods += [method for method in means["method"].unique() if method not in methods]
    figure = new_figure(height=3.3)
    panels = figure.subplots(1, 4)
    for axes, (name, title, factor) in zip(panels, _AGREEMENT, strict=False):
        for method in methods:
            rows = means[means["method"] == method]
            axes.plot(rows["round"], factor * rows[name], **line_style(measures.palette.method(method)))
        axes.set_ylabel(title)
        round_axis(axes, means["round"])
    changes = measures.home_change_by_round
    changes = changes[(changes["budget"] == budget) & changes["method"].isin(methods)]
    change_panel(panels[3], changes, methods, measures, means["round"])
    shared_legend(figure, legend_handles(measures.palette, methods))
    return figure


def _drift_by_round(axes: Axes, totals: pd.DataFrame, branches: list[str], measures: Measures) -> None:
    for branch in branches:
        rows = totals[totals["branch"] == branch].sort_values("round")
        style = line_style(measures.palette.teacher(branch))
        axes.plot(rows["round"], 100 * rows["relative_drift"], label=label(branch), **style)
    axes.set_ylim(bottom=0)
    axes.set_title("All tensors, by round")
    round_axis(axes, totals["round"])


def _drift_by_layer(axes: Axes, rows: pd.DataFrame, branches: list[str], measures: Measures) -> None:
    layers = layer_order(rows["layer"])
    positions = {layer: index for index, layer in enumerate(layers)}
    for branch in branches:
        of_branch = rows[rows["branch"] == branch]
        x = of_branch["layer"].map(positions).to_numpy(dtype=float)
        order = np.argsort(x)
        y = 100 * of_branch["relative_drift"].to_numpy(dtype=float)
        axes.plot(x[order], y[order], **line_style(measures.palette.teacher(branch)))
    stride = max(1, -(-len(layers) // 12))
    ticks = list(range(0, len(layers), stride))
    names = [label(str(layers[tick]).removeprefix("layer ").removesuffix(" layers"), 14) for tick in ticks]
    axes.set_xticks(ticks, names)
    if max(map(len, names)) > 3 and len(names) > 5:
        axes.tick_params(axis="x", labelrotation=40)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
            text.set_rotation_mode("anchor")
    axes.set_xlabel("layer")


def change_panel(axes: Axes, changes: pd.DataFrame, methods: list[str], measures: Measures, rounds: Any) -> None:
    """The change in home accuracy of each round, by method."""
    axes.axhline(0, color="#888888", linewidth=0.9)
    for index, method in enumerate(methods):
        look, rows = (
            measures.palette.method(method),
            changes[changes["method"] == method].sort_values("round"),
        )
        x = rows["round"].to_numpy(dtype=float) + 0.24 * ((index + 0.5) / len(methods) - 0.5)
        axes.plot(x, 100 * rows["change"].astype(float), **line_style(look))
        for position, low, high in zip(x, rows["ci_low"], rows["ci_high"], strict=True):
            whiskers(axes, position, 100 * low, 100 * high, look.colour)
    axes.set_ylabel("change in home accuracy\nthat round (points)")
    round_axis(axes, rounds)


def round_axis(axes: Axes, rounds: Any) -> None:
    """The x axis of a panel by round."""
    axes.set_xlabel("round")
    axes.set_xlim(min(rounds) - 0.4, max(rounds) + 0.4)
    whole_number_axis(axes)
