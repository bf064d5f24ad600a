"""The results of a study's cells, side by side: one table of problem scores, and paired estimates on it.

A *cell* is one experiment of a study; its coordinates (student, rounds, …) become columns. An *arm* is what is compared: a
cell, a budget and a method. Invariant: two arms are compared problem by problem on the problems that both were asked,
each problem's score being the mean over training seeds and samples; an arm that was asked other problems is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mot_core.errors import StoreError
from mot_core.evaluation.statistics import bootstrap_intervals, holm, paired_comparison
from mot_core.results import Results
from mot_core.tables import best_single_teachers

if TYPE_CHECKING:
    import pandas as pd

Scores = Mapping[tuple[str, str], float]
"""(benchmark, problem id) → score in [0, 1], a mean over seeds and samples."""
NUM_RESAMPLES = 4_000
_SEED = 0


@dataclass(frozen=True)
class Arm:
    """A method's student (or students, one a seed) in one cell under one budget."""

    cell: str
    method: str
    budget: str = "matched_path"

    def __str__(self) -> str:
        return f"{self.method} in {self.cell}" if self.cell else self.method


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval over problems."""

    mean: float
    low: float
    high: float
    num_problems: int
    num_seeds: int


@dataclass(frozen=True)
class Difference:
    """a − b, paired by problem, with its interval and the p-value of a sign-flip test; `adjusted` by Holm over the
    table that it stands in, equal to `p_value` until then."""

    a: str
    b: str
    delta: float
    low: float
    high: float
    p_value: float
    adjusted: float
    num_problems: int
    num_seeds: int

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or `open` where the corrected test does not decide at 5 %."""
        if self.adjusted >= 0.05 or self.delta == 0.0:
            return "open"
        return "higher" if self.delta > 0 else "lower"


@dataclass
class Outcomes:
    """What the cells of a study have given so far, in their order."""

    results: dict[str, Results] = field(default_factory=dict)
    coordinates: dict[str, dict[str, Any]] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    """Estimates and differences by what they are of: a study's table, figure and text ask for the same ones."""

    def add(self, cell: str, coordinates: Mapping[str, Any], results: Results) -> None:
        """Take in one cell's tables."""
        self.results[cell], self.coordinates[cell] = results, dict(coordinates)
        self._known.clear()
        self.__dict__.pop("scores", None)
        self.__dict__.pop("problem_scores", None)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The table `scores` of every cell, with the columns `cell` and the coordinates."""
        return self._joined("scores")

    @cached_property
    def problem_scores(self) -> pd.DataFrame:
        """The table `problem_scores` of every cell, with the columns `cell`, `role`, `share` and the coordinates."""
        frame = self._joined("problem_scores")
        roles = self.scores.drop_duplicates("benchmark").set_index("benchmark")["role"]
        return frame.assign(role=frame["benchmark"].map(roles), share=frame["num_correct"] / frame["num_samples"])

    def _joined(self, table: str) -> pd.DataFrame:
        import pandas as pd

        frames = [
            getattr(results, table).assign(cell=cell, **self.coordinates[cell])
            for cell, results in self.results.items()
        ]
        return pd.concat(frames, ignore_index=True)

    # -- arms ------------------------------------------------------------------------------------------

    def methods(self, cell: str, budget: str = "matched_path") -> list[str]:
        """The methods with a final student in a cell, in the order of its tables."""
        scores = self.results[cell].scores
        final = scores[scores["is_final"] & (scores["budget"] == budget)]
        return list(dict.fromkeys(final["method"]))

    def best_teacher(self, cell: str, budget: str = "matched_path", split: str = "dev") -> str:
        """The STD method that is best on the home benchmarks' dev split, as comparisons choose it; `test_oracle` with
        split 'test'."""
        chosen = best_single_teachers(self.results[cell].scores.to_dict("records")).get(budget, {})
        found = chosen.get("dev" if split == "dev" else "test_oracle")
        if found is None:
            raise StoreError(f"cell {cell!r} has no single teacher's student under {budget}; add the method std")
        return found

    def rivals(self, cell: str) -> dict[str, str]:
        """What most studies draw of a cell, by the names that figures give them: MoT, the best single teacher's student and
        MTD."""
        return {"mot": "mot", "best STD": self.best_teacher(cell), "mtd": "mtd"}

    def by_problem(
        self, arm: Arm, *, role: str | None = "home", split: str = "test", benchmark: str | None = None,
        round_index: float | None = None, seed: int | None = None,
    ) -> dict[tuple[str, str], float]:  # fmt: skip
        """An arm's score by problem: of its final students, or of those at a round.

        Raises:
            StoreError: no such students.
        """
        frame = self.problem_scores
        rows = frame[
            (frame["cell"] == arm.cell) & (frame["method"] == arm.method) & (frame["budget"] == arm.budget)
            & (frame["split"] == split)
        ]  # fmt: skip
        rows = rows[rows["is_final"]] if round_index is None else rows[rows["round"] == round_index]
        for name, wanted in (("role", role), ("benchmark", benchmark), ("seed", seed)):
            rows = rows if wanted is None else rows[rows[name] == wanted]
        if rows.empty:
            raise StoreError(
                f"no {split} scores of {arm} under {arm.budget}"
                + (f" at round {round_index}" if round_index is not None else "")
                + f"; the cell has {', '.join(self.methods(arm.cell, arm.budget)) or 'none'}"
            )
        means = rows.groupby(["benchmark", "problem_id"], sort=True)["share"].mean()
        return {(str(name), str(problem)): float(share) for (name, problem), share in means.items()}

    def num_seeds(self, arm: Arm) -> int:
        """How many training seeds an arm has."""
        frame = self.scores
        rows = frame[(frame["cell"] == arm.cell) & (frame["method"] == arm.method) & (frame["budget"] == arm.budget)]
        return int(rows["seed"].nunique())

    def estimate(self, arm: Arm, **where: Any) -> Estimate:
        """The mean over problems with its interval; every problem weighs the same, whichever benchmark it is of."""
        key = (arm, *sorted(where.items()))
        if key not in self._known:
            self._known[key] = estimate(self.by_problem(arm, **where), self.num_seeds(arm))
        found: Estimate = self._known[key]
        return found

    def difference(self, a: Arm, b: Arm, **where: Any) -> Difference:
        """a − b on the problems of both."""
        key = (a, b, *sorted(where.items()))
        if key not in self._known:
            seeds = min(self.num_seeds(a), self.num_seeds(b))
            self._known[key] = difference(
                str(a), self.by_problem(a, **where), str(b), self.by_problem(b, **where), seeds
            )
        found: Difference = self._known[key]
        return found


def estimate(scores: Scores, num_seeds: int) -> Estimate:
    """The mean over problems with its bootstrap interval."""
    values = np.array(list(scores.values()))
    low, high = bootstrap_intervals(values[:, None], NUM_RESAMPLES, _SEED, bounds=(0.0, 1.0))
    return Estimate(float(values.mean()), float(low[0]), float(high[0]), values.size, num_seeds)


def difference(a: str, scores_a: Scores, b: str, scores_b: Scores, num_seeds: int) -> Difference:
    """a − b, paired by problem.

    Raises:
        StoreError: the two were asked different problems.
    """
    if scores_a.keys() != scores_b.keys():
        missing = len(scores_a.keys() ^ scores_b.keys())
        raise StoreError(f"{a} and {b} were asked different problems ({missing} differ): they cannot be paired")
    first = np.array([scores_a[key] for key in scores_a])
    second = np.array([scores_b[key] for key in scores_a])
    found = paired_comparison(first, second, _SEED, NUM_RESAMPLES)
    return Difference(
        a, b, found.delta, found.ci_low, found.ci_high, found.p_value, found.p_value, found.num_problems, num_seeds
    )


def corrected(table: Sequence[Difference]) -> list[Difference]:
    """The same differences, each with its p-value adjusted by Holm over all of them."""
    if not table:
        return []
    adjusted = holm([one.p_value for one in table])
    return [replace(one, adjusted=float(p)) for one, p in zip(table, adjusted, strict=True)]
