"""Samples: how many rationales are enough, and whether seeing few often replaces seeing many (claim C3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from flows.studies.base import PATH_BUDGET, Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.drawing import curve, legend, looks_of, panels
from mot_core.analysis.outcomes import Arm, Estimate
from mot_core.analysis.wording import estimated, percent, ranged, sizes
from mot_core.report.palette import method_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STEPS, EPOCHS = "same steps", "same epochs"


class SamplesOptions(Options):
    """The numbers of rationales a teacher, of the same drawn problems; `same_epochs` go over them as often as the
    reference number's steps do."""

    num_rationales: tuple[int, ...] = Field((25, 50, 100, 200, 400, 800), min_length=2)
    same_epochs: tuple[int, ...] = (50, 100, 200, 400)
    reference: int = Field(200, ge=1)
    num_problems: int = Field(1400, ge=1, description="drawn, so that all teachers are right on enough of them")


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """One cell a number of rationales and axis."""
    options, base = setup.options, setup.base
    methods = only_methods(base, ["base", "std", "mtd", "mot"])
    made = []
    for axis, counts in ((STEPS, options.num_rationales), (EPOCHS, options.same_epochs)):
        for count in counts:
            steps = base.steps_per_round
            if axis == EPOCHS:
                steps = max(1, round(steps * count / options.reference))
            name = f"{'steps' if axis == STEPS else 'epochs'}-{count}"
            spec = with_fields(
                base, name, methods=methods, budgets=PATH_BUDGET, steps_per_round=steps, corpus={"num_rationales": count},
                problems={"num_problems": options.num_problems},
            )  # fmt: skip
            made.append(Cell(name, spec, {"axis": axis, "rationales": count, "steps_per_round": steps}))
    return made


def _cells(findings: Findings, axis: str) -> list[str]:
    return [name for name, where in findings.outcomes.coordinates.items() if where["axis"] == axis]


def _values(findings: Findings, cell: str) -> dict[str, Estimate]:
    return {
        name: findings.outcomes.estimate(Arm(cell, method)) for name, method in findings.outcomes.rivals(cell).items()
    }


def table(findings: Findings) -> pd.DataFrame:
    """A row a cell: accuracy of MoT, the best teacher's student and MTD."""
    import pandas as pd

    rows = []
    for axis in (STEPS, EPOCHS):
        for cell in _cells(findings, axis):
            where, values = findings.outcomes.coordinates[cell], _values(findings, cell)
            chosen = findings.outcomes.results[cell].rationales
            kept = int(chosen[chosen["selected"]].groupby("teacher").size().min()) if chosen["selected"].any() else 0
            rows.append(
                {
                    "axis": axis, "rationales asked for": where["rationales"], "rationales had": kept,
                    "steps a round": where["steps_per_round"],
                    **{method_name(name): estimated(value) for name, value in values.items()},
                    "best STD is": method_name(findings.outcomes.best_teacher(cell)),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def figure(findings: Findings) -> Figure:
    """Accuracy against the number of rationales, at the same steps and at the same epochs."""
    axes_of = [axis for axis in (STEPS, EPOCHS) if _cells(findings, axis)]
    drawn, axes = panels(len(axes_of))
    looks = looks_of(["mot", "best STD", "mtd"])
    for axis, panel in zip(axes_of, axes, strict=True):
        names = _cells(findings, axis)
        xs = [float(findings.outcomes.coordinates[cell]["rationales"]) for cell in names]
        values = [_values(findings, cell) for cell in names]
        panel.set_xscale("log")
        for place, name in enumerate(looks):
            curve(panel, xs, [one[name] for one in values], looks[name], method_name(name), dodge=0.03 * (place - 1))
        panel.set_xticks(xs, [f"{x:.0f}" for x in xs])
        panel.minorticks_off()
        panel.set_xlabel("rationales a teacher")
        panel.set_ylabel("accuracy (%)")
        panel.set_title(f"{axis.capitalize()} (home, test)")
    legend(axes[0])
    return drawn


def text(findings: Findings) -> str:
    """What is gained past the reference number, and what repetition replaces."""
    outcomes, options = findings.outcomes, findings.setup.options
    names = _cells(findings, STEPS)
    values = {cell: _values(findings, cell)["mot"] for cell in names}
    best = max(names, key=lambda cell: values[cell].mean)
    of = {int(outcomes.coordinates[cell]["rationales"]): cell for cell in names}
    near = of.get(options.reference, names[-1])
    largest, smallest = of[max(of)], of[min(of)]

    def change(a: str, b: str) -> str:
        return ranged(outcomes.difference(Arm(a, "mot"), Arm(b, "mot")))

    sentences = [
        f"At the same number of steps, MoT is highest with {outcomes.coordinates[best]['rationales']} rationales a teacher, "
        f"picked afterwards ({estimated(values[best])})"
        + (
            "."
            if best == near
            else f"; with {outcomes.coordinates[near]['rationales']} it reaches {estimated(values[near])}; the highest minus this: {change(best, near)}."
        )
    ]
    if largest != near:
        sentences.append(
            f"From {outcomes.coordinates[near]['rationales']} to {max(of)} rationales it changes by {change(largest, near)}"
        )
        sentences[-1] += f", from {min(of)} to {outcomes.coordinates[near]['rationales']} by {change(near, smallest)}."
    epochs = _cells(findings, EPOCHS)
    if epochs:
        few = epochs[0]
        same = of.get(int(outcomes.coordinates[few]["rationales"]))
        if same is not None:
            sentences.append(
                f"With {outcomes.coordinates[few]['rationales']} rationales, seeing them as often as the reference does "
                f"(fewer steps) gives {percent(_values(findings, few)['mot'].mean)} %; repeating them over all steps "
                f"changes that by {change(same, few)}."
            )
    ahead = [cell for cell in names if _values(findings, cell)["mot"].mean > _values(findings, cell)["best STD"].mean]
    sentences.append(
        f"These are intervals, without tests. MoT's mean is above the best single teacher's in {len(ahead)} of {len(names)} "
        f"cells at the same steps. "
        f"{sizes(list(values.values())).capitalize()}."
    )
    return " ".join(sentences)


STUDY = Study(
    name="samples", claim="claim C3", options=SamplesOptions, phases=(cells,), table=table, figure=figure, text=text,
    question="Are about 200 rationales enough, and can seeing few of them more often replace more of them?",
)  # fmt: skip
