"""Best teacher: students × teachers × datasets, each teacher alone (claim C1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from flows.studies.base import PATH_BUDGET, Cell, Findings, Options, Setup, Study, only_methods, with_fields
from mot_core.analysis.drawing import bars, looks_of, panels
from mot_core.analysis.outcomes import Arm, Difference, corrected
from mot_core.analysis.wording import counted, described, estimated, listing, sizes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class BestTeacherOptions(Options):
    """`students` by name, each the fields of a student; `datasets` by name, each fields of the experiment (problems, …)."""

    students: dict[str, dict[str, Any]] = Field(min_length=1)
    datasets: dict[str, dict[str, Any]] = Field(min_length=1)


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """A cell a student and dataset."""
    base, options = setup.base, setup.options
    methods = only_methods(base, ["base", "std"])
    made = []
    for student, model in options.students.items():
        for dataset, fields in options.datasets.items():
            name = f"{student}-{dataset}"
            spec = with_fields(
                base, name, methods=methods, budgets=PATH_BUDGET, **{**fields, "student": {"name": student, **model}}
            )
            made.append(Cell(name, spec, {"student": student, "dataset": dataset}))
    return made


def _teachers(findings: Findings) -> list[str]:
    return [teacher.name for teacher in findings.setup.base.teachers]


def best_on_dev(findings: Findings, cell: str) -> str:
    """The teacher whose student is best on dev, home benchmarks pooled: picked there, compared on test."""
    return findings.outcomes.best_teacher(cell).removeprefix("std/")


def leads(findings: Findings) -> dict[str, dict[str, Difference]]:
    """By cell: the teacher that is best on dev minus each other one, on test, Holm over all cells."""
    pairs = []
    for cell in findings.outcomes.coordinates:
        best = best_on_dev(findings, cell)
        pairs += [(cell, name, findings.outcomes.difference(Arm(cell, f"std/{best}"), Arm(cell, f"std/{name}")))
                  for name in _teachers(findings) if name != best]  # fmt: skip
    found: dict[str, dict[str, Difference]] = {}
    for (cell, name, _), one in zip(pairs, corrected([one for *_, one in pairs]), strict=True):
        found.setdefault(cell, {})[name] = one
    return found


def holds_up(findings: Findings, cell: str) -> dict[str, bool]:
    """Whether the teacher that is best on dev is best on test, too, and there with each training seed alone."""
    outcomes, best = findings.outcomes, best_on_dev(findings, cell)

    def best_of(seed: int | None) -> str:
        return max(_teachers(findings), key=lambda name: outcomes.estimate(Arm(cell, f"std/{name}"), seed=seed).mean)

    seeds = sorted(set(outcomes.results[cell].scores["seed"]))
    return {"test": best_of(None) == best, "each seed": all(best_of(seed) == best for seed in seeds)}


def table(findings: Findings) -> pd.DataFrame:
    """The matrix: a row a student and dataset, a column a teacher."""
    import pandas as pd

    outcomes, rows, lead = findings.outcomes, [], leads(findings)
    for cell, where in outcomes.coordinates.items():
        best, firm = best_on_dev(findings, cell), holds_up(findings, cell)
        closest = min(lead[cell].values(), key=lambda one: one.delta) if cell in lead else None
        rows.append(
            {
                "student": where["student"], "dataset": where["dataset"],
                "untrained": estimated(outcomes.estimate(Arm(cell, "base"))),
                **{name: estimated(outcomes.estimate(Arm(cell, f"std/{name}"))) for name in _teachers(findings)},
                "best on dev": best, "ahead of the next on test": described(closest) if closest else "",
                "same on test": "yes" if firm["test"] else "no", "same with each seed": "yes" if firm["each seed"] else "no",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def figure(findings: Findings) -> Figure:
    """A panel a student and dataset: each teacher's student, and the untrained one."""
    outcomes = findings.outcomes
    methods = [f"std/{name}" for name in _teachers(findings)]
    looks = looks_of(["base", *methods], _teachers(findings))
    drawn, axes = panels(len(outcomes.coordinates), height=1.0 + 0.3 * len(methods), max_columns=2)
    for panel, (cell, where) in zip(axes, outcomes.coordinates.items(), strict=True):
        keys = ["base", *methods]
        names = ["untrained", *_teachers(findings)]
        bars(panel, names, [outcomes.estimate(Arm(cell, key)) for key in keys], looks, keys)
        panel.set_title(f"{where['student']}, trained on {where['dataset']}")
        panel.set_xlabel("accuracy (home, test, %)")
    return drawn


def text(findings: Findings) -> str:
    """Whether the best teacher differs, and how firmly."""
    outcomes, lead = findings.outcomes, leads(findings)
    winners = {cell: best_on_dev(findings, cell) for cell in outcomes.coordinates}
    firm = {cell: holds_up(findings, cell) for cell in winners}
    decided = [cell for cell, found in lead.items() if all(one.verdict == "higher" for one in found.values())]
    distinct = list(dict.fromkeys(winners.values()))
    parts = [
        f"{where['student']} on {where['dataset']}: {winners[cell]}"
        + ("" if cell in decided else " (lead not decided)")
        + ("" if firm[cell]["test"] else " (not the best on test)")
        + ("" if firm[cell]["each seed"] else " (not with every seed)")
        for cell, where in outcomes.coordinates.items()
    ]
    sentences = [f"The best single teacher, picked on dev, is: {'; '.join(parts)}."]
    if len(distinct) == 1:
        sentences.append(
            f"The same teacher, {distinct[0]}, is best in {'all ' if len(winners) > 1 else ''}{counted(len(winners), 'cell')}."
        )
    else:
        by_decided = list(dict.fromkeys(winners[cell] for cell in decided))
        sentences.append(
            f"{len(distinct)} teachers ({listing(distinct)}) are best somewhere; counting only leads that the corrected test "
            f"decides, {len(by_decided)} ({listing(by_decided)})."
        )
    below = [
        f"{name} for {where['student']} on {where['dataset']}"
        for cell, where in outcomes.coordinates.items()
        for name in _teachers(findings)
        if outcomes.difference(Arm(cell, f"std/{name}"), Arm(cell, "base")).high < 0
    ]
    if below:
        sentences.append(f"Below the untrained student (uncorrected interval below zero) end: {listing(below)}.")
    every = [one for found in lead.values() for one in found.values()]
    if every:
        sentences.append(f"{sizes(every).capitalize()}; Holm's correction over {counted(len(every), 'lead')}.")
    return " ".join(sentences)


STUDY = Study(
    name="best-teacher", claim="claim C1", options=BestTeacherOptions, phases=(cells,), table=table, figure=figure,
    text=text, question="Do different students have different best teachers, and does it vary by dataset for one student?",
)  # fmt: skip
