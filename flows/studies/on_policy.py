"""On-policy: distillation on the student's own samples from several teachers, alone and after MoT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flows.studies.base import Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.drawing import bars, differences, looks_of, panels
from mot_core.analysis.outcomes import Arm, Difference, corrected
from mot_core.analysis.wording import described, estimated, sizes
from mot_core.report.palette import budget_name, method_name
from mot_core.spec import BudgetName

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class OnPolicyOptions(Options):
    """Variants by name, each the fields of `on_policy`; `singles` are the base's methods that distil on-policy from one
    teacher each, of which the one that is best on dev is compared."""

    singles: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    budgets: tuple[BudgetName, ...] = ("matched_path", "matched_compute")


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """A cell a variant; the methods without on-policy steps are the same in all, single teachers' are in the first."""
    base, options = setup.base, setup.options
    made: list[Cell] = []
    for name, fields in options.variants.items():
        compared = ["base", "std", "mtd", "mot", "opd", "mot_opd", *(() if made else options.singles)]
        spec = with_fields(
            base, name, methods=only_methods(base, compared), on_policy=fields, budgets=list(options.budgets)
        )
        made.append(Cell(name, spec, {"on_policy": name}))
    return made


def _arms(findings: Findings, budget: str) -> dict[str, Arm]:
    """What is compared: the methods without on-policy steps once, the others for each variant."""
    names = list(findings.outcomes.coordinates)
    first = names[0]
    arms = {method_name(method): Arm(first, method, budget) for method in ("base", "mtd", "mot")}
    best = findings.outcomes.best_teacher(first, budget)
    arms[f"best {method_name(best)}"] = Arm(first, best, budget)
    if findings.setup.options.singles:
        single = best_single(findings, budget)
        arms[f"best single OPD ({single.removeprefix('opd-')})"] = Arm(first, single, budget)
    for name in names:
        arms[f"OPD, {name}"] = Arm(name, "opd", budget)
        arms[f"MoT, then OPD, {name}"] = Arm(name, "mot_opd", budget)
    return arms


def best_single(findings: Findings, budget: str) -> str:
    """The method of `singles` that is best on the home benchmarks' dev split; ties go to the first."""
    first, outcomes = next(iter(findings.outcomes.coordinates)), findings.outcomes
    singles = findings.setup.options.singles
    return str(max(singles, key=lambda name: outcomes.estimate(Arm(first, name, budget), split="dev").mean))


def against_mot(findings: Findings) -> dict[tuple[str, str], Difference]:
    """By budget and arm: minus MoT, Holm over all."""
    found: dict[tuple[str, str], Difference] = {}
    for budget in findings.setup.options.budgets:
        arms = _arms(findings, budget)
        mot = arms[method_name("mot")]
        found |= {(budget, name): findings.outcomes.difference(arm, mot) for name, arm in arms.items() if arm != mot}
    return dict(zip(found, corrected(list(found.values())), strict=True))


def table(findings: Findings) -> pd.DataFrame:
    """A row a budget and arm: accuracy, difference from MoT, cost."""
    import pandas as pd

    outcomes, against, rows = findings.outcomes, against_mot(findings), []
    for budget in findings.setup.options.budgets:
        for name, arm in _arms(findings, budget).items():
            cost = outcomes.results[arm.cell].cost
            own = cost[(cost["method"] == arm.method) & (cost["budget"] == budget)]["training_flops"].astype(float)
            rows.append(
                {
                    "budget": budget_name(budget), "method": name, "home": estimated(outcomes.estimate(arm)),
                    "against MoT": described(against[budget, name]) if (budget, name) in against else "reference",
                    "training FLOPs": f"{own.mean():.2g}" if len(own) and own.mean() > 0 else "0",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def figure(findings: Findings) -> Figure:
    """A row a budget: accuracy, and differences from MoT."""
    outcomes, budgets, against = findings.outcomes, findings.setup.options.budgets, against_mot(findings)
    arms = {budget: _arms(findings, budget) for budget in budgets}
    drawn, axes = panels(2 * len(budgets), height=1.2 + 0.24 * len(arms[budgets[0]]), max_columns=2)
    for index, budget in enumerate(budgets):
        names = list(arms[budget])
        looks = looks_of(names)
        bars(axes[2 * index], names, [outcomes.estimate(arm) for arm in arms[budget].values()], looks, names)
        axes[2 * index].set_title(f"{budget_name(budget)} (home, test)")
        axes[2 * index].set_xlabel("accuracy (%)")
        own = {name: one for (of, name), one in against.items() if of == budget}
        differences(axes[2 * index + 1], list(own.values()), list(own))
        axes[2 * index + 1].set_title("Minus MoT")
    return drawn


def text(findings: Findings) -> str:
    """On-policy steps against MoT, and on top of it."""
    against, sentences = against_mot(findings), []
    for budget in findings.setup.options.budgets:
        mot = findings.outcomes.estimate(_arms(findings, budget)[method_name("mot")])
        parts = [f"{name} {described(one)}" for (of, name), one in against.items() if of == budget and "OPD" in name]
        rest = [f"{name} {described(one)}" for (of, name), one in against.items() if of == budget and "OPD" not in name]
        sentences.append(
            f"{budget_name(budget).capitalize()}: MoT reaches {estimated(mot)}; minus MoT: {'; '.join(parts)}. For scale: "
            f"{'; '.join(rest)}."
        )
    sentences.append("MoT, then OPD pays for both: the table has the FLOPs.")
    sentences.append(
        f"{sizes(list(against.values())).capitalize()}; Holm's correction over {len(against)} differences."
    )
    return " ".join(sentences)


STUDY = Study(
    name="on-policy", claim="the strongest rival (arXiv 2606.30406, 2602.12125)", options=OnPolicyOptions, phases=(cells,),
    table=table, figure=figure, text=text,
    question="At equal compute, is distillation on the student's own samples better than merging, and does it add to it?",
)  # fmt: skip
