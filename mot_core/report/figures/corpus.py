"""Teacher × problem coverage, and how long the teachers' rationales are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mot_core.report.figures.drawing import INK, label, new_figure, scaled, shared_legend
from mot_core.report.measures import Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOLVED_COLOURS = {"all": "#1B5E8C", "some": "#8FB8D8", "none": "#D9D9D9"}


def coverage_table(measures: Measures) -> pd.DataFrame:
    """Share of correct rationales, teachers × problems; problems sorted by how many teachers solve them."""
    coverage = measures.results.coverage
    samples = pd.to_numeric(coverage["num_samples"]).astype(float)
    share = pd.to_numeric(coverage["num_correct"]).astype(float) / samples.where(samples > 0)
    table = coverage.assign(share=share).pivot_table(index="teacher", columns="problem_id", values="share")
    solved = table > 0
    order = solved.mean(axis=1).sort_values(ascending=False, kind="stable").index  # best teacher on top
    table, solved = table.loc[order], solved.loc[order]
    keys = pd.DataFrame({"solved": solved.sum(), **{teacher: solved.loc[teacher] for teacher in order}})
    keys["total"] = table.sum()
    return table[keys.sort_values(list(keys), ascending=False, kind="stable").index]


def solved_counts(measures: Measures) -> pd.DataFrame:
    """Problems that all, some or none of the teachers solve at least once, by family."""
    table = coverage_table(measures)
    solved, num_teachers = (table > 0).sum(), table.notna().sum()
    kind = np.where(solved == 0, "none", np.where(solved == num_teachers, "all", "some"))
    family = measures.results.coverage.drop_duplicates("problem_id").set_index("problem_id")["family"]
    counts = pd.crosstab(family.reindex(table.columns).astype(str).to_numpy(), kind)
    return counts.reindex(columns=list(SOLVED_COLOURS), fill_value=0)


def teacher_coverage(measures: Measures) -> Figure | None:
    """The matrix, a strip of the selected problems, the teachers' totals, the families' counts."""
    if measures.results.coverage.empty:
        return None
    table, counts = coverage_table(measures), solved_counts(measures)
    matrix_height = 0.34 * len(table)
    families_height = 0.3 * len(counts)
    figure = new_figure(height=2.3 + matrix_height + families_height)
    grid = figure.add_gridspec(
        3, 2, width_ratios=[4.2, 1.3], height_ratios=[matrix_height, 0.14, families_height + 0.2]
    )
    matrix = figure.add_subplot(grid[0, 0])
    _matrix_panel(matrix, table)
    _totals_panel(figure.add_subplot(grid[0, 1]), table)
    _selected_strip(figure.add_subplot(grid[1, 0]), measures, table)
    _families_panel(figure.add_subplot(grid[2, :]), counts)
    return figure


def rationale_lengths(measures: Measures) -> Figure | None:
    """Length quantiles by teacher, for all rationales drawn and for those selected."""
    rationales = measures.results.rationales
    if rationales.empty:
        return None
    frame = rationales.assign(tokens=pd.to_numeric(rationales["completion_tokens"]).astype(float))
    frame["chosen"] = frame["selected"].map(lambda value: value is True or value == 1).astype(bool)
    teachers = [t for t in measures.palette.teachers if (frame["teacher"] == t).any()]
    teachers += [t for t in frame["teacher"].unique() if t not in teachers]
    figure = new_figure(height=1.35 + 0.52 * len(teachers))
    axes = figure.subplots()
    factor, suffix = scaled(float(frame["tokens"].max()))
    for row, teacher in enumerate(teachers):
        look = measures.palette.teacher(teacher)
        of_teacher = frame[frame["teacher"] == teacher]
        _quantile_bar(axes, row - 0.14, of_teacher["tokens"] / factor, look.colour, 0.45)
        _quantile_bar(axes, row + 0.16, of_teacher.loc[of_teacher["chosen"], "tokens"] / factor, look.colour, 1.0)
    axes.set_yticks(range(len(teachers)), [label(teacher) for teacher in teachers])
    axes.set_ylim(len(teachers) - 0.5, -0.5)
    axes.set_xlabel("completion tokens a rationale" + suffix)
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    shared_legend(figure, _length_handles())
    return figure


def _matrix_panel(axes: Axes, table: pd.DataFrame) -> None:
    import matplotlib

    colours = matplotlib.colormaps["Blues"].with_extremes(bad="#F3E9D2")
    image = axes.imshow(
        np.ma.masked_invalid(table.to_numpy(dtype=float) * 100), aspect="auto", cmap=colours,
        vmin=0, vmax=100, interpolation="nearest",
    )  # fmt: skip
    axes.set_yticks(range(len(table)), [label(teacher) for teacher in table.index])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)
    axes.set_title(f"Correct rationales ({table.shape[1]:,} problems)")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.025, pad=0.01, ticks=[0, 50, 100])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
    bar.outline.set_linewidth(0.5)
    bar.ax.grid(visible=False)


def _totals_panel(axes: Axes, table: pd.DataFrame) -> None:
    solved, mean = (table > 0).sum(axis=1), table.mean(axis=1)
    share = 100 * solved / table.notna().sum(axis=1)
    rows = np.arange(len(table))
    axes.barh(rows, share, height=0.62, color="#8FB8D8")
    axes.barh(rows, 100 * mean, height=0.62, color="#1B5E8C")
    for row, (part, count) in enumerate(zip(share, solved, strict=True)):
        axes.text(part + 2, row, f"{count:,}", va="center", fontsize=8.0, color=INK)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(0, 122)
    axes.set_xticks([0, 50, 100])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_title("Solved at least once")
    axes.set_xlabel("problems (%)")


def _selected_strip(axes: Axes, measures: Measures, table: pd.DataFrame) -> None:
    coverage = measures.results.coverage
    chosen = coverage["selected"].map(lambda value: value is True or value == 1).astype(float)
    strip = chosen.groupby(coverage["problem_id"]).max().reindex(table.columns).fillna(0.0)
    axes.imshow(strip.to_numpy()[None, :], aspect="auto", cmap="Greys", vmin=0, vmax=1.2, interpolation="nearest")
    axes.set_yticks([0], ["in corpora"])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set_xlabel(f"{int(strip.sum()):,} problems in a corpus (dark)", fontsize=8.0)


def _families_panel(axes: Axes, counts: pd.DataFrame) -> None:
    left = np.zeros(len(counts))
    total = max(1, int(counts.sum(axis=1).max()))
    for kind, colour in SOLVED_COLOURS.items():
        values = counts[kind].to_numpy(dtype=float)
        axes.barh(
            range(len(counts)),
            values,
            left=left,
            height=0.64,
            color=colour,
            label="no teacher" if kind == "none" else f"{kind} teachers",
        )
        for row, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= 0.03 * total:
                colour_of_text = "white" if kind == "all" else INK
                axes.text(
                    start + value / 2,
                    row,
                    f"{value:,.0f}",
                    ha="center",
                    va="center",
                    fontsize=8.0,
                    color=colour_of_text,
                )
        left += values
    axes.set_yticks(range(len(counts)), [label(family) for family in counts.index])
    axes.set_ylim(len(counts) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.set_title("Problems solved at least once by all, some or none of the teachers, by family")
    axes.set_xlabel("problems")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _quantile_bar(axes: Axes, y: float, tokens: pd.Series[Any], colour: str, alpha: float) -> None:
    if tokens.empty:
        return
    p5, p25, p50, p75, p95 = tokens.quantile([0.05, 0.25, 0.5, 0.75, 0.95])
    axes.plot([p5, p95], [y, y], color=colour, alpha=alpha, linewidth=1.2, solid_capstyle="butt")
    axes.plot([p25, p75], [y, y], color=colour, alpha=alpha, linewidth=6.0, solid_capstyle="butt")
    axes.plot(p50, y, marker="o", color="white", markeredgecolor=INK, markersize=5.0, markeredgewidth=0.9)
    axes.annotate(f"{p50:,.4g}", (p95, y), (5, 0), textcoords="offset points", va="center", fontsize=7.5)


def _length_handles() -> list[Any]:
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "#555555", "solid_capstyle": "butt"}
    return [
        Line2D([], [], alpha=0.45, linewidth=6.0, label="all drawn: quartiles", **grey),
        Line2D([], [], linewidth=6.0, label="selected: quartiles", **grey),
        Line2D([], [], linewidth=1.2, label="5th to 95th percentile", **grey),
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            color="white",
            markeredgecolor=INK,
            label="median (value at right)",
        ),
    ]
