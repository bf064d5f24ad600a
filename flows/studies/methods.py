"""Methods: all of them, at equal steps along the path and at equal compute, with the controls (claim C2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from flows.studies.base import Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.drawing import bars, differences, looks_of, panels
from mot_core.analysis.outcomes import Arm, Difference, corrected
from mot_core.analysis.wording import described, estimated, listing, percent, ranged, sizes, tally
from mot_core.evaluation.statistics import mean_and_interval
from mot_core.report.figures.drawing import label, scaled, whiskers
from mot_core.report.palette import Look, budget_name, method_name
from mot_core.spec import BudgetName

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = "methods"


class MethodsOptions(Options):
    """Which of the base's methods are compared, under which budgets."""

    methods: tuple[str, ...] = Field(min_length=2)
    budgets: tuple[BudgetName, ...] = ("matched_path", "matched_compute")


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """One experiment holds them all."""
    options = setup.options
    spec = with_fields(
        setup.base, CELL, methods=only_methods(setup.base, options.methods), budgets=list(options.budgets)
    )
    return [Cell(CELL, spec)]


def against_best(findings: Findings, budget: str) -> dict[str, Difference]:
    """Every other method minus the best single teacher's student, chosen on dev; Holm over the budget's table."""
    best = findings.outcomes.best_teacher(CELL, budget)
    names = [name for name in _methods(findings, budget) if name != best]
    found = corrected([_difference(findings, name, best, budget) for name in names])
    return dict(zip(names, found, strict=True))


def of_mot(findings: Findings, budget: str) -> dict[str, Difference]:
    """MoT minus every other method, Holm over the budget's table."""
    names = [name for name in _methods(findings, budget) if name != "mot"]
    found = corrected([_difference(findings, "mot", name, budget) for name in names])
    return dict(zip(names, found, strict=True))


def _difference(findings: Findings, a: str, b: str, budget: str, role: str = "home") -> Difference:
    return findings.outcomes.difference(Arm(CELL, a, budget), Arm(CELL, b, budget), role=role)


def _methods(findings: Findings, budget: str) -> list[str]:
    return findings.outcomes.methods(CELL, budget)


def table(findings: Findings) -> pd.DataFrame:
    """The reviewers' table: a row a budget and method, with deviation over seeds, differences and costs."""
    import pandas as pd

    outcomes, rows = findings.outcomes, []
    roles = set(outcomes.scores["role"])
    for budget in findings.setup.options.budgets:
        best = outcomes.best_teacher(CELL, budget)
        against, versus = against_best(findings, budget), of_mot(findings, budget)
        for method in _methods(findings, budget):
            arm = Arm(CELL, method, budget)
            cost = _cost(findings, method, budget)
            sd = mean_and_interval(_by_seed(findings, method, budget)).sd
            rows.append(
                {
                    "budget": budget_name(budget), "method": method_name(method) + (" (best on dev)" if method == best else ""),
                    "home": estimated(outcomes.estimate(arm)),
                    "SD over seeds": "—" if sd is None else f"{100 * sd:.1f}",
                    **({"panel": percent(outcomes.estimate(arm, role="panel").mean) + " %"} if "panel" in roles else {}),
                    "against best STD": described(against[method]) if method in against else "",
                    "MoT against it": described(versus[method]) if method in versus else "",
                    "branch steps": int(cost["branch_steps"]), "students at inference": int(cost["num_students_at_inference"]),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _by_seed(findings: Findings, method: str, budget: str) -> list[float]:
    scores = findings.outcomes.scores
    rows = scores[
        (scores["method"] == method) & (scores["budget"] == budget) & scores["is_final"] & (scores["split"] == "test")
        & (scores["role"] == "home")
    ]  # fmt: skip
    return [float(value) for value in rows.groupby("seed")["avg_at_k"].mean()]


def _cost(findings: Findings, method: str, budget: str) -> dict[str, float]:
    frame = findings.outcomes.results[CELL].cost
    rows = frame[(frame["method"] == method) & (frame["budget"] == budget)]
    names = ("branch_steps", "training_flops", "num_students_at_inference")
    return {name: float(np.mean(rows[name].astype(float))) if len(rows) else 0.0 for name in names}


def figure(findings: Findings) -> Figure:
    """A column a budget: accuracy, MoT's differences; last, accuracy against training FLOPs."""
    outcomes, budgets = findings.outcomes, findings.setup.options.budgets
    names = list(dict.fromkeys(name for budget in budgets for name in _methods(findings, budget)))
    looks = looks_of(names, [teacher.name for teacher in findings.setup.base.teachers])
    drawn, axes = panels(2 * len(budgets) + 2, height=1.2 + 0.19 * len(names), max_columns=2)
    for index, budget in enumerate(budgets):
        methods = _methods(findings, budget)
        values = [outcomes.estimate(Arm(CELL, method, budget)) for method in methods]
        bars(axes[2 * index], [method_name(method) for method in methods], values, looks, methods)
        axes[2 * index].set_title(f"{budget_name(budget)}: home, test")
        axes[2 * index].set_xlabel("accuracy (%)")
        found = of_mot(findings, budget)
        differences(axes[2 * index + 1], list(found.values()), [method_name(name) for name in found])
        axes[2 * index + 1].set_title(f"{budget_name(budget)}: MoT minus …")
    _cost_panel(findings, axes[-2], looks)
    handles = dict(zip(*reversed(axes[-2].get_legend_handles_labels()), strict=True))
    axes[-1].set_axis_off()
    axes[-1].legend(handles.values(), handles.keys(), loc="center left", ncols=2, fontsize=7, columnspacing=1.0)
    return drawn


def _cost_panel(findings: Findings, axes: Axes, looks: dict[str, Look]) -> None:
    """Accuracy against training FLOPs; open markers are the second budget."""
    budgets = findings.setup.options.budgets
    costs = {
        (budget, method): _cost(findings, method, budget)["training_flops"]
        for budget in budgets for method in _methods(findings, budget)
    }  # fmt: skip
    factor, suffix = scaled(max(costs.values()))
    for (budget, method), flops in costs.items():
        if flops <= 0:
            continue
        value, style = findings.outcomes.estimate(Arm(CELL, method, budget)), looks[method]
        whiskers(axes, flops / factor, 100 * value.low, 100 * value.high, style.colour)
        axes.plot(
            flops / factor, 100 * value.mean, marker=style.marker, color=style.colour, linestyle="", markersize=7,
            markerfacecolor=style.colour if budget == budgets[0] else "white", label=label(method_name(method), 24),
        )  # fmt: skip
    axes.set_xlabel(f"training FLOPs{suffix}; open: the second budget")
    axes.set_ylabel("accuracy (%)")
    axes.set_title("Accuracy against cost")


def text(findings: Findings) -> str:
    """MoT against the best teacher, the union and the controls, under each budget."""
    outcomes, sentences, every = findings.outcomes, list[str](), list[Difference]()
    for budget in findings.setup.options.budgets:
        best, oracle = outcomes.best_teacher(CELL, budget), outcomes.best_teacher(CELL, budget, "test")
        found = of_mot(findings, budget)
        every += found.values()
        mot, rival = outcomes.estimate(Arm(CELL, "mot", budget)), outcomes.estimate(Arm(CELL, best, budget))
        sentences.append(
            f"{budget_name(budget).capitalize()}: MoT reaches {estimated(mot)} on home, {method_name(best)}, the best single "
            f"teacher on dev, {estimated(rival)}: {described(found[best])}."
            + ("" if oracle == best else f" With hindsight the best teacher on test is {method_name(oracle)}.")
        )
        parts = [
            f"{method_name(name)} {described(one)}"
            for name, one in found.items()
            if name != best and not name.startswith("std/")
        ]
        sentences.append(f"MoT minus other methods: {'; '.join(parts)}." if parts else "")
        leaders = [
            name for name in _methods(findings, budget) if outcomes.estimate(Arm(CELL, name, budget)).mean > mot.mean
        ]
        sentences.append(
            f"Above MoT's mean lie {listing([method_name(name) for name in leaders])}."
            if leaders
            else "No method has a higher mean than MoT."
        )
        sentences.append(f"Over the whole table, {tally(list(found.values()), 'in favour of MoT', 'against it')}.")
    first = findings.setup.options.budgets[0]
    if "panel" in set(outcomes.scores["role"]) and "base" in _methods(findings, first):
        panel = _difference(findings, "mot", "base", first, role="panel")
        sentences.append(f"On the panel MoT is {ranged(panel)} from the untrained student.")
    sentences.append(f"{sizes(every).capitalize()}; Holm's correction runs over each budget's table.")
    return " ".join(sentence for sentence in sentences if sentence)


STUDY = Study(
    name="methods", claim="claim C2", options=MethodsOptions, phases=(cells,), table=table, figure=figure, text=text,
    question="Does MoT beat the best single teacher and the union, and is it more than smaller updates or averaging?",
)  # fmt: skip
