"""The headline table (frame, LaTeX), and every table of the run as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from mot_core.report.measures import Measures
from mot_core.report.palette import budget_name, method_name
from mot_core.report.text import latex, spreadsheet
from mot_core.report.wording import percent, points, stars

DELTA_COLUMNS = ("against", "delta", "delta_low", "delta_high", "p_value", "p_value_holm")


def headline_frame(measures: Measures) -> pd.DataFrame:
    """Final scores by budget, method and benchmark, with the paired difference from the best teacher.

    `is_best` marks the highest mean of a budget and benchmark: several if equal, none if all are.
    """
    frame = measures.final.copy()
    comparisons = _against_best(measures)
    keys = zip(frame["budget"], frame["method"], frame["benchmark"], strict=True)
    found = [comparisons.get(key, (None,) * len(DELTA_COLUMNS)) for key in keys]
    for index, column in enumerate(DELTA_COLUMNS):
        values = [row[index] for row in found]
        frame[column] = pd.Series(values, index=frame.index, dtype=object if column == "against" else float)
    by_column = frame.groupby(["budget", "benchmark"])["mean"]
    highest, lowest = by_column.transform("max"), by_column.transform("min")
    frame["is_best"] = ((frame["mean"] >= highest - 1e-12) & (highest > lowest)).astype(bool)
    order = {method: index for index, method in enumerate(measures.palette.methods)}
    places = {name: index for index, (name, _) in enumerate(measures.benchmarks)}
    rank = pd.DataFrame(
        {
            "budget": frame["budget"].map({name: index for index, name in enumerate(measures.budgets)}),
            "method": frame["method"].map(order),
            "benchmark": frame["benchmark"].map(places),
        }
    )
    return frame.loc[rank.sort_values(["budget", "method", "benchmark"]).index].reset_index(drop=True)


def headline_latex(measures: Measures, headline: pd.DataFrame) -> str:
    """The headline table for a paper: booktabs, one block of rows a budget, escaped."""
    benchmarks = [name for name, _ in measures.benchmarks if (headline["benchmark"] == name).any()]
    best = "; ".join(
        f"{budget_name(budget)}: {method_name(name) if name else 'none'}"
        for budget, name in ((budget, measures.best_teacher(budget)) for budget in measures.budgets)
    )
    lines = [
        "% Needs \\usepackage{booktabs}.",
        f"% avg@k in percent: mean and sample deviation over seeds on the {measures.report_split} split; "
        "in brackets the 95 % bootstrap interval over problems.",
        f"% Delta: paired difference in points from the best single teacher on dev ({latex(best)}); "
        "* p < 0.05, ** p < 0.01, *** p < 0.001 after Holm.",
        r"\begin{tabular}{l" + "rr" * len(benchmarks) + "}",
        r"\toprule",
        " & ".join(["", *(rf"\multicolumn{{2}}{{c}}{{{latex(name)}}}" for name in benchmarks)]) + r" \\",
        " ".join(rf"\cmidrule(lr){{{2 * i + 2}-{2 * i + 3}}}" for i in range(len(benchmarks))),
        " & ".join(["Method", *(["avg@k (\\%)", r"$\Delta$"] * len(benchmarks))]) + r" \\",
    ]
    for budget in measures.budgets:
        rows = headline[headline["budget"] == budget]
        if rows.empty:
            continue
        lines += [
            r"\midrule",
            rf"\multicolumn{{{1 + 2 * len(benchmarks)}}}{{l}}{{\emph{{{latex(budget_name(budget))}}}}} \\",
        ]
        for method in dict.fromkeys(rows["method"]):
            cells = [
                _latex_cells(rows[(rows["method"] == method) & (rows["benchmark"] == name)]) for name in benchmarks
            ]
            lines.append(" & ".join([latex(method_name(method)), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def write_tables(measures: Measures, headline: pd.DataFrame, directory: Path) -> None:
    """Every table of the run and the headline as CSV, and the headline as LaTeX."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, frame in {**measures.results.tables(), "headline": headline}.items():
        # A completion may hold lone surrogates, which UTF-8 refuses: they are written as their escapes.
        _quoted(frame).to_csv(directory / f"{name}.csv", index=False, lineterminator="\n", errors="backslashreplace")
    (directory / "headline.tex").write_text(headline_latex(measures, headline), encoding="utf-8", newline="\n")


def _quoted(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with every text such that a spreadsheet shows it."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    # pandas' own strings refuse a lone surrogate; a column of objects does not.
    cells = {
        name: pd.Series(list(map(spreadsheet, column)), frame.index, dtype=object) for name, column in texts.items()
    }
    return frame.assign(**cells)


def _against_best(measures: Measures) -> dict[tuple[str, str, str], tuple[Any, ...]]:
    """The comparisons with the best teacher by (budget, method, benchmark), turned round where it is `a`."""
    found: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    for row in measures.results.comparisons.itertuples(index=False):
        budget, benchmark, p_values = str(row.budget), str(row.benchmark), (row.p_value, row.p_value_holm)
        best = measures.best_teacher(budget)
        if row.b == best:
            found[budget, str(row.a), benchmark] = (best, row.delta, row.ci_low, row.ci_high, *p_values)
        elif row.a == best:
            turned = (best, -row.delta, -row.ci_high, -row.ci_low, *p_values)
            found.setdefault((budget, str(row.b), benchmark), turned)
    return found


def _latex_cells(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "--- & ---"
    row = rows.iloc[0]
    value = percent(row["mean"]) + (
        "" if pd.isna(row["sd"]) or row["method"] == "base" else rf" $\pm$ {percent(row['sd'])}"
    )
    value = rf"\textbf{{{value}}}" if row["is_best"] else value
    if not pd.isna(row["ci_low"]):
        value += rf" {{\scriptsize [{percent(row['ci_low'])}, {percent(row['ci_high'])}]}}"
    if pd.isna(row["delta"]):
        return f"{value} & ---"
    delta = points(row["delta"]).replace("−", "$-$")
    return f"{value} & {delta}" + (rf"$^{{{stars(row['p_value_holm'])}}}$" if stars(row["p_value_holm"]) else "")
