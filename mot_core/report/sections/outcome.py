"""What came out: headline, accuracy by round, accuracy against cost, forgetting."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from mot_core.comparison import power_of
from mot_core.evaluation.power import power_sentence
from mot_core.evaluation.statistics import MCNEMAR, PERMUTATION
from mot_core.report.blocks import (
    Cell,
    CodeBlock,
    FigureBlock,
    Header,
    ListBlock,
    Section,
    TableBlock,
    TextBlock,
    missing,
    simple_table,
)
from mot_core.report.figures.accuracy import accuracy_against_cost, accuracy_by_round
from mot_core.report.figures.drawing import rendered
from mot_core.report.figures.forgetting import forgetting, forgetting_table
from mot_core.report.measures import Measures
from mot_core.report.palette import budget_about, budget_name, method_about, method_name
from mot_core.report.wording import (
    INTERVAL,
    final_sizes,
    headline_paragraph,
    listing,
    percent,
    points,
    sizes,
    stars,
)  # fmt: skip
from mot_core.text import visible

_COST_TITLES = {
    "teacher_tokens": "teacher tokens", "training_tokens": "training tokens",
    "training_flops": "training FLOPs", "branch_steps": "branch steps", "path_steps": "path steps",
    "inference_tokens_per_problem": "inference tokens a problem",
    "num_students_at_inference": "students at inference",
}  # fmt: skip


def headline_section(measures: Measures, headline: pd.DataFrame) -> Section:
    """The paragraph and one table a budget: method × benchmark with paired differences."""
    blocks: list[Any] = [TextBlock(headline_paragraph(measures, headline), role="lead")]
    if headline.empty:
        blocks.append(missing("no final student was scored (table 'scores')"))
    for budget in measures.budgets:
        rows = headline[headline["budget"] == budget]
        if len(rows):
            blocks.append(_headline_table(measures, budget, rows))
            blocks += _power_notes(measures, budget)
    colour = measures.palette.method
    blocks.append(
        ListBlock(
            [(visible(method_name(m)), visible(method_about(m)), colour(m).colour) for m in measures.palette.methods]
        )
    )
    return Section("headline", "Headline", "Headline", blocks)


def rounds_section(measures: Measures) -> Section:
    """Accuracy along the path."""
    blocks: list[Any] = []
    for budget in measures.budgets:
        figure = accuracy_by_round(measures, budget)
        if figure is None:
            continue
        name = f"accuracy_by_round_{slug(budget)}"
        curves = measures.curves[measures.curves["budget"] == budget]
        splits = curves.drop_duplicates("benchmark").set_index("benchmark")["split"]
        scores = measures.scores[measures.scores["budget"] == budget]
        followed = scores[scores["split"] == scores["benchmark"].map(splits)]
        caption = (
            f"Accuracy by round, {visible(budget_name(budget))}. One panel a benchmark, on the split named in its "
            "title; a method measured once is a single marker at its last round, and the dotted line with its band "
            f"is the untrained student. A path without merges is shown at the round boundaries{_inside(followed)} at which "
            f"it was scored, and at its end, whatever its length, at its last round. Vertical bars: {INTERVAL}; methods "
            f"are shifted sideways within a round to keep them apart. {sizes(followed)}."
        )
        alt = f"Line chart of accuracy by round for {len(curves['method'].unique())} methods."
        blocks.append(FigureBlock(rendered(name, figure), alt, caption))
    return Section(
        "rounds",
        "Accuracy by round",
        "Rounds",
        blocks or [missing("no student was scored by problem (table 'problem_scores')")],
    )


def cost_section(measures: Measures) -> Section:
    """Accuracy against three costs, and the costs as a table."""
    blocks: list[Any] = []
    figure = accuracy_against_cost(measures)
    if figure is not None:
        caption = (
            f"Home accuracy of the final students on {measures.report_split}, all home problems pooled, against the "
            "method's total cost (mean over seeds): completion tokens drawn from teachers for the corpora it "
            "trains on, training FLOPs over its whole path, and completion tokens a problem at inference. Methods "
            "are shifted sideways by at most 3.5 % of the axis, so that equal costs do not hide each other; the "
            f"table has the exact ones. Vertical bars: {INTERVAL}. {final_sizes(measures)}."
        )
        blocks.append(
            FigureBlock(rendered("accuracy_against_cost", figure), "Scatter plots of accuracy over cost.", caption)
        )
    cost = measures.results.cost
    if cost.empty:
        blocks.append(missing("no costs were recorded (table 'cost')"))
    else:
        columns = list(_COST_TITLES)
        numbers = cost.assign(**{c: pd.to_numeric(cost[c], errors="coerce") for c in columns})
        means = numbers.groupby(["budget", "method"], sort=False)[columns].mean().reset_index()
        rank = {method: index for index, method in enumerate(measures.palette.methods)}
        means = means.sort_values(
            ["budget", "method"],
            key=lambda s: s.map(rank) if s.name == "method" else s,
            ascending=[False, True],
        )
        rows = [
            [
                budget_name(str(row["budget"])),
                method_name(str(row["method"])),
                *[_cost_cell(c, row[c]) for c in columns],
            ]
            for _, row in means.iterrows()
        ]
        titles = list(_COST_TITLES.values())
        blocks.append(
            simple_table(
                "Cost of each method over its whole path, mean over seeds.",
                ["budget", "method", *titles],
                rows,
                "cost-table",
            )
        )
        if figure is None:
            blocks.append(missing("no home accuracy by problem to set beside the costs"))
    return Section("cost", "Accuracy against cost", "Cost", blocks)


def forgetting_section(measures: Measures) -> Section:
    """Panel against home, as changes from the untrained student."""
    blocks: list[Any] = []
    figure = forgetting(measures)
    if figure is None:
        return Section("forgetting", "Forgetting", "Forgetting", [missing(_no_forgetting(measures))])
    scores = measures.scores
    caption = (
        f"Change from the untrained student on {measures.report_split}: panel benchmarks (not distilled) over home "
        "benchmarks, problems pooled within each role. Below the horizontal line something was forgotten. Bars: 95 "
        "% percentile bootstrap over problems of the paired difference, seeds averaged within a problem. "
        f"{sizes(scores[scores['is_final'] & (scores['split'] == measures.report_split)])}."
    )
    blocks.append(
        FigureBlock(rendered("forgetting", figure), "Scatter of panel change over home change, by method.", caption)
    )
    table = forgetting_table(measures)
    rank = {method: index for index, method in enumerate(measures.palette.methods)}
    table = table.sort_values(
        ["budget", "method"], key=lambda s: s.map(rank) if s.name == "method" else s, ascending=[False, True]
    )
    rows = [
        [
            budget_name(row["budget"]),
            method_name(row["method"]),
            *[cell for role in ("home", "panel") for cell in _change_cells(row, role)],
        ]
        for _, row in table.iterrows()
    ]
    columns = ["budget", "method", "home (%)", "change (points)", "panel (%)", "change (points)"]
    blocks.append(
        simple_table("The same as numbers, with 95 % intervals of the change.", columns, rows, "forgetting-table")
    )
    return Section("forgetting", "Forgetting", "Forgetting", blocks)


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def _inside(followed: pd.DataFrame) -> str:
    return " and inside rounds" if (followed["round"] % 1 != 0).any() else ""


def _headline_table(measures: Measures, budget: str, rows: pd.DataFrame) -> TableBlock:
    benchmarks = [(name, role) for name, role in measures.benchmarks if (rows["benchmark"] == name).any()]
    chosen = measures.best_teacher(budget)
    best = method_name(chosen) if chosen else None
    top = [Header("", 1), *[Header(f"{visible(name)} ({role})", 2) for name, role in benchmarks]]
    second = [
        Header("method"),
        *[Header(text, 1, True) for _ in benchmarks for text in ("avg@k (%)", "Δ (points)")],
    ]
    table = []
    for method in dict.fromkeys(rows["method"]):
        cells = [Cell(visible(method_name(method)), colour=measures.palette.method(method).colour)]
        for name, _ in benchmarks:
            cells += _headline_cells(rows[(rows["method"] == method) & (rows["benchmark"] == name)])
        table.append(cells)
    against = (
        f"Δ is the paired difference from {visible(best)}, the best single teacher on dev, with its 95 % bootstrap "
        f"interval; * p < 0.05, ** p < 0.01, *** p < 0.001 ({_tests(measures, budget)} over problems, after Holm)."
        if best
        else "No best single teacher was recorded, so no paired difference is shown."
    )
    one_seed = bool(rows["sd"].isna().all())
    spread = "Mean (one training seed, so no deviation)" if one_seed else "Mean ± sample deviation over training seeds"
    caption = (
        f"{visible(budget_name(budget)).capitalize()}{budget_about(budget)}: final students on "
        f"{measures.report_split}. {spread}; in brackets the interval ({INTERVAL}), then the standard error over "
        "problems (SE). "
        f"Bold: highest mean of the column, significant or not. {against} {final_sizes(measures)}."
    )
    return TableBlock(caption, [top, second], table, f"headline-{slug(budget)}")


def _tests(measures: Measures, budget: str) -> str:
    """The tests that a budget's p-values are from."""
    names = {PERMUTATION: "sign-flip permutation test", MCNEMAR: "exact McNemar test"}
    rows = measures.results.comparisons
    return listing([names[str(test)] for test in rows.loc[rows["budget"] == budget, "test"].unique()])


def _power_notes(measures: Measures, budget: str) -> list[Any]:
    """What the comparisons of a budget could have seen: MoT with the best single teacher in sight, all others folded."""
    rows = measures.results.comparisons
    best = measures.best_teacher(budget)
    shown: list[str] = []
    folded: list[str] = []
    for row in rows[rows["budget"] == budget].to_dict("records"):
        pair = f"{visible(method_name(row['a']))} − {visible(method_name(row['b']))}, {visible(row['benchmark'])}"
        line = f"{pair}: {power_sentence(power_of(row))}"
        (shown if {row["a"], row["b"]} == {"mot", best} else folded).append(line)
    blocks: list[Any] = [TextBlock("What the comparison could see. " + " ".join(shown))] if shown else []
    return blocks + ([CodeBlock("What the other comparisons could see", "\n".join(folded), False)] if folded else [])


def _headline_cells(rows: pd.DataFrame) -> list[Cell]:
    if rows.empty:
        return [Cell("—", is_number=True), Cell("—", is_number=True)]
    row = rows.iloc[0]
    deviation = "" if pd.isna(row["sd"]) or row["method"] == "base" else f" ± {percent(row['sd'])}"
    interval = "" if pd.isna(row["ci_low"]) else f"[{percent(row['ci_low'])}, {percent(row['ci_high'])}]"
    interval += "" if pd.isna(row["se_problems"]) else f" SE {percent(row['se_problems'])}"
    score = Cell(
        percent(row["mean"]) + deviation,
        interval,
        bool(row["is_best"]),
        value=float(row["mean"]),
        is_number=True,
    )
    if pd.isna(row["delta"]):
        return [score, Cell("—", is_number=True)]
    significance = stars(row["p_value_holm"])
    detail = f"[{points(row['delta_low'])}, {points(row['delta_high'])}]"
    return [
        score,
        Cell(points(row["delta"]) + significance, detail, value=float(row["delta"]), is_number=True),
    ]


def _cost_cell(column: str, value: float) -> Cell | float:
    if column != "training_flops" or not value > 0:
        return round(value, 1)
    exponent = math.floor(math.log10(value))
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return Cell(f"{value / 10**exponent:.2f} × 10{power}", is_number=True)


def _change_cells(row: pd.Series[Any], role: str) -> list[Cell]:
    accuracy = Cell(percent(row[f"mean_{role}"]), is_number=True)
    if pd.isna(row[f"change_{role}"]) or row["method"] == "base":
        return [accuracy, Cell("—", is_number=True)]
    interval = f"[{points(row[f'ci_low_{role}'])}, {points(row[f'ci_high_{role}'])}]"
    return [accuracy, Cell(points(row[f"change_{role}"]), interval, is_number=True)]


def _no_forgetting(measures: Measures) -> str:
    roles = {role for _, role in measures.benchmarks}
    if "panel" not in roles:
        return "no benchmark has the role 'panel', so there is nothing that could have been forgotten"
    return "home and panel scores by problem, of base and of one other method at least, are needed"
