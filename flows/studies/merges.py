"""Merges: every rule and outer optimizer in MoT's loop, and weights by teacher quality."""

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


class MergesOptions(Options):
    """Merges by name, each the fields of `merge`; the one called `reference` is what the others are compared with."""

    merges: dict[str, dict[str, Any]] = Field(min_length=2)
    reference: str = "mean"

    @model_validator(mode="after")
    def _reference_is_there(self) -> MergesOptions:
        check_reference(self.reference, self.merges, "merges")
        return self


def cells(setup: Setup, findings: Findings) -> Sequence[Cell]:
    """A cell a merge; the branches of the first round are the same in all."""
    methods = only_methods(setup.base, ["base", "std", "mot"])
    return [
        Cell(name, with_fields(setup.base, name, methods=methods, budgets=PATH_BUDGET, merge=merge), {"merge": name})
        for name, merge in setup.options.merges.items()
    ]


def _ranking(findings: Findings) -> Ranking:
    options, names = findings.setup.options, list(findings.outcomes.coordinates)
    reference = options.reference
    arms = {name: Arm(name, "mot") for name in names}
    arms["best STD"] = Arm(reference, findings.outcomes.best_teacher(reference))
    return Ranking(findings.outcomes, arms, reference)


def table(findings: Findings) -> pd.DataFrame:
    """A row a merge: accuracy, difference from the mean, and how much of the branches' updates it keeps."""
    kept = {}
    for name, results in findings.outcomes.results.items():
        rows = results.merge_agreement[results.merge_agreement["method"] == "mot"]
        kept[name] = f"{rows['energy_kept'].mean():.2f}" if len(rows) else ""
    return _ranking(findings).rows(energy_kept=kept)


def figure(findings: Findings) -> Figure:
    """Accuracy by merge, and differences from the reference."""
    return _ranking(findings).figure("MoT by merge")


def text(findings: Findings) -> str:
    """Which merges differ from the mean."""
    return _ranking(findings).sentences()


STUDY = Study(
    name="merges", claim="the reviewers' question about other merges", options=MergesOptions, phases=(cells,), table=table,
    figure=figure, text=text,
    question="Is the plain mean the right merge, or do other rules, outer optimizers or weights by quality do better?",
)  # fmt: skip
