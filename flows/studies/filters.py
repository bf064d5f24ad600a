"""Filters: correctness, choice among correct rationales, length and difficulty, on and off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from flows.studies.base import (
    PATH_BUDGET,
    Cell,
    Findings,
    Options,
    Setup,
    Study,
    check_reference,
    only_methods,
    with_fields,
)
from mot_core.analysis.outcomes import Arm
from mot_core.analysis.ranking import Ranking

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class FiltersOptions(Options):
    """Corpora by name, each the fields of `corpus` that differ; `num_samples` rationales are drawn a problem, so that
    there is something to choose from."""

    filters: dict[str, dict[str, Any]] = Field(min_length=2)
    reference: str = "first correct"
    num_samples: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _reference_is_there(self) -> FiltersOptions:
        check_reference(self.reference, self.filters, "filters")
        return self


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """A cell a filter, of the same drawn rationales."""
    options, base = setup.options, setup.base
    methods = only_methods(base, ["base", "mot"])
    made = []
    for name, corpus in options.filters.items():
        cell = name.replace(" ", "-")
        spec = with_fields(
            base, cell, methods=methods, budgets=PATH_BUDGET, corpus=corpus,
            generation={"num_samples": options.num_samples},
        )  # fmt: skip
        made.append(Cell(cell, spec, {"filter": name}))
    return made


def _ranking(findings: Findings) -> Ranking:
    names = {str(where["filter"]): cell for cell, where in findings.outcomes.coordinates.items()}
    return Ranking(
        findings.outcomes, {name: Arm(cell, "mot") for name, cell in names.items()}, findings.setup.options.reference
    )


def table(findings: Findings) -> pd.DataFrame:
    """A row a filter: accuracy, difference from the reference, what was left, how much of it is right."""
    left, right = {}, {}
    for cell, results in findings.outcomes.results.items():
        name = str(findings.outcomes.coordinates[cell]["filter"])
        kept = results.rationales[results.rationales["selected"]]
        left[name] = int(kept.groupby("teacher").size().min()) if len(kept) else 0
        right[name] = f"{100 * (kept['verdict'] == 'correct').mean():.0f} %" if len(kept) else ""
    return _ranking(findings).rows(rationales_a_teacher=left, of_them_right=right)


def figure(findings: Findings) -> Figure:
    """Accuracy by filter, and differences from the reference."""
    return _ranking(findings).figure("MoT by filter")


def text(findings: Findings) -> str:
    """Which filters matter."""
    return _ranking(findings).sentences()


STUDY = Study(
    name="filters", claim="the paper's verification step; OpenThoughts (arXiv 2506.04178)", options=FiltersOptions,
    phases=(cells,), table=table, figure=figure, text=text,
    question="Does it matter which rationales are kept: the right ones, the shortest, the likeliest, the hard ones?",
)  # fmt: skip
