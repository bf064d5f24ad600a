"""Numbers as text, captions, and the headline paragraph, all generated from the figures.

Invariant: no verdict is fixed. Each sentence is chosen by the numbers, in MoT's favour or against it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from mot_core.report.measures import Measures
from mot_core.report.palette import budget_name, method_name
from mot_core.text import visible

SIGNIFICANT = 0.05
INTERVAL = "95 % percentile bootstrap over problems, seeds averaged within a problem"


def percent(share: Any) -> str:
    """0.4123 as '41.2'."""
    return "—" if _absent(share) else f"{100 * float(share):.1f}".replace("-", "−")


def points(share: Any) -> str:
    """A difference of shares in percentage points with its sign: 0.0251 as '+2.5'."""
    if _absent(share):
        return "—"
    text = f"{100 * float(share):+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def p_text(p_value: Any) -> str:
    """A p-value with two significant digits, never '0'."""
    if _absent(p_value):
        return "—"
    value = float(p_value)
    return f"{value:.4f}" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def stars(p_value: Any) -> str:
    """Marks of significance: * below 0.05, ** below 0.01, *** below 0.001."""
    if _absent(p_value):
        return ""
    return "*" * sum(float(p_value) < bound for bound in (0.05, 0.01, 0.001))


def listing(words: list[str]) -> str:
    """'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def sizes(frame: pd.DataFrame) -> str:
    """n, k and seeds of the scores in `frame`, by benchmark."""
    parts = []
    for benchmark, rows in frame.groupby("benchmark", sort=False):
        first = rows.iloc[0]
        parts.append(
            f"{visible(benchmark)} n = {int(first['num_problems']):,} problems, k = {int(first['k'])} samples each"
        )
    seeds = listing(sorted({visible(seed) for seed in frame["seed"]}, key=lambda seed: (len(seed), seed)))
    return f"{'; '.join(parts)}; training seed{'s' if frame['seed'].nunique() > 1 else ''} {seeds}"


def final_sizes(measures: Measures) -> str:
    """`sizes` of the final students on the report's split."""
    scores = measures.scores
    return sizes(scores[scores["is_final"] & (scores["split"] == measures.report_split)])


def headline_paragraph(measures: Measures, headline: pd.DataFrame) -> str:
    """What the run found about MoT against the best single teacher, and the test oracle beside it."""
    if headline.empty:
        return "The run holds no scores of final students, so nothing can be said about its methods yet."
    if "mot" not in set(headline["method"]):
        return "MoT was not among this run's methods; the table shows those that were."
    compared = headline[(headline["method"] == "mot") & headline["delta"].notna()]
    if compared.empty:
        return (
            "The run holds no paired comparison of MoT with a best single teacher chosen on dev; the table shows "
            "all scores."
        )
    sentences = [_overall(compared, measures)]
    for budget in measures.budgets:
        rows = compared[compared["budget"] == budget]
        if len(rows):
            best = str(rows["against"].iloc[0])
            clauses = "; ".join(_clause(row, headline) for _, row in rows.iterrows())
            name = visible(budget_name(budget)).capitalize()
            sentences.append(f"{name}, MoT against {visible(method_name(best))}: {clauses}.")
            sentences += _leaders(budget, headline) + _oracle(measures, budget, best)
    return " ".join(sentences)


def _overall(compared: pd.DataFrame, measures: Measures) -> str:
    # Without an adjusted p-value a difference counts as not significant.
    significant = pd.to_numeric(compared["p_value_holm"]) < SIGNIFICANT
    wins, losses = (
        int((significant & (compared["delta"] > 0)).sum()),
        int((significant & (compared["delta"] < 0)).sum()),
    )
    total = len(compared)
    if not wins and not losses:
        found = f"none of the {total} differences is significant" if total > 1 else "the difference is not significant"
    elif total == 1:
        found = f"MoT is significantly {'better' if wins else 'worse'}"
    else:
        found = (
            f"of {total} differences, {wins} {_is(wins)} significant in MoT's favour and {losses} {_is(losses)} "
            "against it"
        )
    seeds = int(compared["num_seeds"].max())
    return (
        f"MoT is compared on {measures.report_split} with the student of the best single teacher, which was chosen on "
        f"dev ({seeds} training seed{'s' if seeds > 1 else ''}): {found} at the 5 % level after Holm's correction "
        "(95 % intervals in brackets)."
    )


def _clause(row: pd.Series[Any], headline: pd.DataFrame) -> str:
    rival = headline[
        (headline["budget"] == row["budget"])
        & (headline["benchmark"] == row["benchmark"])
        & (headline["method"] == row["against"])
    ]["mean"]
    against = f" against {percent(rival.iloc[0])} %" if len(rival) else ""
    adjusted = row["p_value_holm"]
    marked = " (significant)" if not _absent(adjusted) and float(adjusted) < SIGNIFICANT else ""
    return (
        f"{visible(row['benchmark'])} ({row['role']}) {percent(row['mean'])} %{against}, a difference of "
        f"{points(row['delta'])} points{marked} [{points(row['delta_low'])}, {points(row['delta_high'])}], p = "
        f"{p_text(row['p_value'])}, adjusted {p_text(adjusted)}"
    )


def _leaders(budget: str, headline: pd.DataFrame) -> list[str]:
    rows = headline[(headline["budget"] == budget) & headline["is_best"]]
    ahead = []
    for benchmark, leaders in rows.groupby("benchmark", sort=False):
        if "mot" not in set(leaders["method"]):
            names = listing([visible(method_name(str(method))) for method in leaders["method"]])
            ahead.append(f"{visible(benchmark)} ({names}, {percent(leaders['mean'].iloc[0])} %)")
    return [f"The highest mean is not MoT's on {listing(ahead)}."] if ahead else []


def _oracle(measures: Measures, budget: str, best: str) -> list[str]:
    name = measures.test_oracle(budget)
    if name is None:
        return []
    if name == best:
        return [f"With hindsight the same teacher is also the best on {measures.report_split}."]
    accuracy, mot = measures.home_mean(budget, name), measures.home_mean(budget, "mot")
    return [
        f"With hindsight the best single teacher on {measures.report_split} would have been "
        f"{visible(method_name(name))} (mean over home benchmarks {percent(accuracy)} %, MoT {percent(mot)} %)."
    ]


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _absent(value: Any) -> bool:
    return value is None or bool(pd.isna(value))
