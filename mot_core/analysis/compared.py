"""Runs side by side: which settings differ, what each method reached in each, and the differences from the first run.

A run is here what a tracker holds of it: its settings as flat text, and its tables `scores` and `problem_scores`.
Invariant: two runs are compared problem by problem, and only where both were asked the same problems; all that is compared
stands in one table, over which Holm's correction runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mot_core.analysis.drawing import bars, differences, look, panels
from mot_core.analysis.outcomes import Arm, Difference, Estimate, Outcomes, corrected
from mot_core.errors import StoreError
from mot_core.report.figures.drawing import label
from mot_core.report.palette import budget_name, method_name
from mot_core.results import TABLE_COLUMNS, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES = ("scores", "problem_scores")
_TEXTS = ("problem_id", "method", "teacher", "benchmark", "identity")


@dataclass(frozen=True)
class Held:
    """One run as a tracker holds it: a name that is unique among those compared, its settings, and its directory of
    tables as CSV."""

    name: str
    settings: Mapping[str, str]
    tables: Path


@dataclass(frozen=True)
class Row:
    """One method under one budget on the benchmarks of one role: its mean in each run that has it, and the difference of
    each later run from the first; None where either lacks it, where they were asked other problems, or where both runs
    have the very same evaluations (`same`), which is no comparison."""

    budget: str
    method: str
    role: str
    values: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]
    same: tuple[bool, ...]


def differing_settings(runs: Sequence[Held]) -> list[tuple[str, tuple[str, ...]]]:
    """`(name, value in each run)` of every setting that is not the same in all; absent ones are empty."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, tuple(run.settings.get(name, "") for run in runs)) for name in names]
    return [row for row in rows if len(set(row[1])) > 1]


def compare_runs(runs: Sequence[Held]) -> list[Row]:
    """Every final student of the runs, on test.

    Raises:
        StoreError: fewer than two runs, or a run without the tables.
    """
    if len(runs) < 2:
        raise StoreError(f"compare needs two runs or more, got {len(runs)}")
    outcomes = Outcomes()
    for run in runs:
        outcomes.add(run.name, {}, read_tables(run))
    rows = list(_rows(outcomes, [run.name for run in runs]))
    found = iter(corrected([one for row in rows for one in row.differences if one is not None]))
    return [
        replace(row, differences=tuple(one if one is None else next(found) for one in row.differences)) for row in rows
    ]


def read_tables(run: Held) -> Results:
    """A run's tables from their CSV files; those that are not compared are empty.

    Raises:
        StoreError: a file is not there, or lacks a column.
    """
    import pandas as pd

    frames = {name: pd.DataFrame(columns=list(columns)) for name, columns in TABLE_COLUMNS.items()}
    for name in TABLES:
        path = run.tables / f"{name}.csv"
        if not path.is_file():
            raise StoreError(
                f"run {run.name}: the tracker holds no tables/{name}.csv of it; only runs of `mot run` have it"
            )
        frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str))
        missing = sorted({"budget", "method", "seed", "is_final", "benchmark", "split"} - set(frame.columns))
        if missing:
            raise StoreError(f"run {run.name}: tables/{name}.csv has no column {missing[0]!r}")
        frames[name] = frame
    return Results(run_id=run.name, spec={}, summary={}, provenance={}, **frames)


def _rows(outcomes: Outcomes, names: Sequence[str]) -> Iterator[Row]:
    scores = outcomes.scores
    final = scores[scores["is_final"] & (scores["split"] == "test")]
    for budget, method, role in dict.fromkeys(zip(final["budget"], final["method"], final["role"], strict=True)):
        own = final[(final["budget"] == budget) & (final["method"] == method) & (final["role"] == role)]
        arms = [Arm(name, method, budget) if (own["cell"] == name).any() else None for name in names]
        values = tuple(outcomes.estimate(arm, role=role) if arm else None for arm in arms)
        # Named by content: equal identities are the same student, asked once.
        steps = [set(own[own["cell"] == name]["identity"].dropna()) for name in names]
        same = tuple(bool(one) and one == steps[0] for one in steps[1:])
        found = (
            None if equal else _difference(outcomes, arm, arms[0], role)
            for arm, equal in zip(arms[1:], same, strict=True)
        )
        yield Row(budget, method, role, values, tuple(found), same)


def _difference(outcomes: Outcomes, a: Arm | None, b: Arm | None, role: str) -> Difference | None:
    if a is None or b is None:
        return None
    if outcomes.by_problem(a, role=role).keys() != outcomes.by_problem(b, role=role).keys():
        return None
    return outcomes.difference(a, b, role=role)


def figure(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """Left: the methods on home, a point a run; then, for each later run, its differences from the first."""
    home = [row for row in rows if row.role == "home"]
    shown = [(row, index) for row in home for index, value in enumerate(row.values) if value is not None]
    several = len({row.budget for row in rows}) > 1

    def named(row: Row) -> str:
        return f"{method_name(row.method)}, {budget_name(row.budget)}" if several else method_name(row.method)

    drawn, axes = panels(len(names), height=1.4 + 0.2 * max(len(shown), 3), max_columns=2)
    bars(
        axes[0], [f"{named(row)}: {names[index]}" for row, index in shown],
        [value for row, index in shown if (value := row.values[index]) is not None],
        {str(index): look(index) for index in range(len(names))}, [str(index) for _, index in shown],
    )  # fmt: skip
    axes[0].set_title("Home, test")
    axes[0].set_xlabel("accuracy (%)")
    for place, name in enumerate(names[1:]):
        own = [(row, one) for row in rows if (one := row.differences[place]) is not None]
        differences(axes[place + 1], [one for _, one in own], [f"{named(row)} ({row.role})" for row, _ in own])
        axes[place + 1].set_title(f"{label(name, 24)} minus the first")
    return drawn
