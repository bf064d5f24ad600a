"""What the report's tables and figures are drawn from: accuracies with intervals, derived from `Results`.

Invariant: every interval here is the 95 % percentile bootstrap over problems, seeds averaged within a
problem, so the report has one kind of interval (where all problems have one value, which has no bootstrap,
the exact bound of `mot_core.evaluation.statistics`). Shares stay in [0, 1]; the figures turn them into percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mot_core.evaluation.statistics import bootstrap_intervals, mean_and_interval, standard_error
from mot_core.report.palette import Palette
from mot_core.results import Results

FINAL_COLUMNS = (
    "budget", "method", "benchmark", "role", "split", "k", "num_problems", "num_seeds", "mean", "sd", "se_problems",
    "seed_low", "seed_high", "ci_low", "ci_high",
)  # fmt: skip
POINT_COLUMNS = ("budget", "method", "benchmark", "role", "split", "round", "mean", "ci_low", "ci_high")
CHANGE_COLUMNS = ("budget", "method", "role", "mean", "change", "ci_low", "ci_high", "num_problems")
Estimate = tuple[float, float, float]  # mean, and the interval's ends
_FINAL_RESAMPLES = 10_000
_POINT_RESAMPLES = 2_000  # error bars of figures: their noise, a fortieth of their length, does not show


@dataclass(frozen=True)
class Measures:
    """Derived tables of one run, each computed on first use and then shared by every section."""

    results: Results

    @cached_property
    def palette(self) -> Palette:
        results = self.results
        methods = [*results.scores["method"], *results.cost["method"], *results.training["method"]]
        return Palette(map(str, methods), map(str, results.coverage["teacher"].unique()))

    @cached_property
    def budgets(self) -> list[str]:
        """The budgets that were run, matched_path first."""
        known = [
            *self.results.scores["budget"],
            *self.results.training["budget"],
            *self.results.cost["budget"],
        ]
        return sorted(dict.fromkeys(map(str, known)), key=lambda name: (name != "matched_path", name))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """`scores` with plain types: `is_final` boolean (an untrained student is final), `round` a number,
        whole unless a student was scored inside a round."""
        return _typed(self.results.scores)

    @cached_property
    def problem_scores(self) -> pd.DataFrame:
        """`problem_scores` likewise, with `share` = correct samples over samples and the benchmark's role."""
        frame = _typed(self.results.problem_scores)
        samples = pd.to_numeric(frame["num_samples"]).astype(float)
        frame["share"] = pd.to_numeric(frame["num_correct"]).astype(float) / samples.where(samples > 0)
        roles = self.scores.drop_duplicates("benchmark").set_index("benchmark")["role"]
        frame["role"] = frame["benchmark"].map(roles)
        return frame.dropna(subset=["share"])

    @cached_property
    def report_split(self) -> str:
        """The split that final figures are of: test, unless the run holds only dev."""
        return "test" if (self.scores["split"] == "test").any() or self.scores.empty else "dev"

    @cached_property
    def final(self) -> pd.DataFrame:
        """One row per budget, method and benchmark: final students on the report's split, over seeds."""
        chosen = self.scores[self.scores["is_final"] & (self.scores["split"] == self.report_split)]
        per_problem = self.problem_scores
        per_problem = per_problem[per_problem["is_final"] & (per_problem["split"] == self.report_split)]
        intervals = _estimates(per_problem, ["budget", "benchmark"], ["method"], _FINAL_RESAMPLES)
        by_problem = per_problem.groupby(["budget", "method", "benchmark", "problem_id"], sort=False)["share"].mean()
        errors = {key: standard_error(shares) for key, shares in by_problem.groupby(level=[0, 1, 2], sort=False)}
        rows: list[dict[str, Any]] = []
        for (budget, method, benchmark), group in chosen.groupby(["budget", "method", "benchmark"], sort=False):
            seeds = mean_and_interval(pd.to_numeric(group["avg_at_k"]).to_numpy(dtype=float))
            low, high = intervals.get((budget, benchmark, method), (seeds.mean, None, None))[1:]
            first = group.iloc[0]
            rows.append(
                {
                    "budget": budget,
                    "method": method,
                    "benchmark": benchmark,
                    "role": first["role"],
                    "split": self.report_split,
                    "k": int(first["k"]),
                    "num_problems": int(first["num_problems"]),
                    "num_seeds": group["seed"].nunique(),
                    "mean": seeds.mean,
                    "sd": seeds.sd,
                    "se_problems": errors.get((budget, method, benchmark)),
                    "seed_low": seeds.low,
                    "seed_high": seeds.high,
                    "ci_low": low,
                    "ci_high": high,
                }
            )
        return pd.DataFrame(rows, columns=list(FINAL_COLUMNS))

    @cached_property
    def benchmarks(self) -> list[tuple[str, str]]:
        """(benchmark, role), home before panel, each in the order of `scores`."""
        pairs = self.scores.drop_duplicates("benchmark")[["benchmark", "role"]].itertuples(index=False)
        return sorted(((str(b), str(r)) for b, r in pairs), key=lambda pair: pair[1] != "home")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Accuracy by round, on each benchmark's split that was followed along the path (as a rule dev)."""
        frame = self.problem_scores
        counts = frame.drop_duplicates(["benchmark", "split", "budget", "method", "round"])
        counts = counts.groupby(["benchmark", "split"]).size()
        followed = {}
        for benchmark, _ in self.benchmarks:
            if benchmark in counts.index.get_level_values(0):
                by_split = counts[benchmark]
                followed[benchmark] = max(by_split.index, key=lambda split: (by_split[split], split == "test"))
        kept = frame[frame["split"] == frame["benchmark"].map(followed)]
        intervals = _estimates(kept, ["budget", "benchmark", "split"], ["method", "round"], _POINT_RESAMPLES)
        roles = dict(self.benchmarks)
        rows = [
            (budget, method, benchmark, roles[benchmark], split, round_index, *values)
            for (budget, benchmark, split, method, round_index), values in intervals.items()
        ]
        return pd.DataFrame(rows, columns=list(POINT_COLUMNS)).sort_values("round", kind="stable")

    @cached_property
    def home_accuracy(self) -> dict[tuple[str, str], Estimate]:
        """By (budget, method): final accuracy over all home problems, pooled."""
        return _estimates(self._final_problems("home"), ["budget"], ["method"], _POINT_RESAMPLES)

    @cached_property
    def change_from_base(self) -> pd.DataFrame:
        """Final accuracy by role, all problems pooled, and its paired difference from base."""
        rows: list[tuple[Any, ...]] = []
        for role in ("home", "panel"):
            for budget, group in self._final_problems(role).groupby("budget", sort=False):
                table = _by_problem(group, ["method"])
                base = table["base"] if "base" in table else pd.Series(np.nan, index=table.index)
                differences = table.drop(columns="base", errors="ignore").sub(base, axis=0)
                changes = _column_estimates(differences, _POINT_RESAMPLES, (-1.0, 1.0))
                if "base" in table:
                    changes["base"] = (0.0, 0.0, 0.0)  # from itself
                for method in table.columns:
                    change = changes.get(method, (None, None, None))
                    rows.append((budget, method, role, table[method].mean(), *change, table[method].count()))
        return pd.DataFrame(rows, columns=list(CHANGE_COLUMNS))

    @cached_property
    def home_change_by_round(self) -> pd.DataFrame:
        """Change in pooled home accuracy from the round before (round 1: from base), followed split."""
        frame = self.problem_scores[self.problem_scores["role"] == "home"]
        followed = self.curves.drop_duplicates("benchmark").set_index("benchmark")["split"]
        frame = frame[frame["split"] == frame["benchmark"].map(followed)]
        rows: list[tuple[Any, ...]] = []
        for budget, group in frame.groupby("budget", sort=False):
            table = _by_problem(group, ["method", "round"])
            changes = {}
            for method, round_index in table.columns:
                before = ("base", 0) if round_index == 1 else (method, round_index - 1)
                if method != "base" and before in table.columns:
                    changes[method, round_index] = table[method, round_index] - table[before]
            found = _column_estimates(pd.DataFrame(changes), _POINT_RESAMPLES, (-1.0, 1.0))
            rows += [(budget, method, round_index, *change) for (method, round_index), change in found.items()]
        return pd.DataFrame(rows, columns=["budget", "method", "round", "change", "ci_low", "ci_high"])

    def best_teacher(self, budget: str) -> str | None:
        """'std/<teacher>' that was best on dev: the summary's, else by the same rule from the scores."""
        recorded = self.results.summary.get("best_single_teacher") or {}
        by_budget = {**recorded, **recorded.get("by_budget", {})}
        of_budget = by_budget.get(budget)
        chosen = (of_budget if isinstance(of_budget, dict) else recorded).get("dev")
        return str(chosen) if chosen is not None else self._highest_teacher(budget, "dev")

    def test_oracle(self, budget: str) -> str | None:
        """The STD student that is best on the report's split: a choice by hindsight, never tested against."""
        return self._highest_teacher(budget, self.report_split)

    def home_mean(self, budget: str, method: str, split: str | None = None) -> float | None:
        """Mean avg@k over home benchmarks and seeds of a final student; None if it was not scored."""
        scores = self.scores
        chosen = scores[
            scores["is_final"] & (scores["role"] == "home") & (scores["split"] == (split or self.report_split))
        ]
        chosen = chosen[(chosen["budget"] == budget) & (chosen["method"] == method)]
        return float(pd.to_numeric(chosen["avg_at_k"]).mean()) if len(chosen) else None

    def _highest_teacher(self, budget: str, split: str) -> str | None:
        names = [method for method in self.palette.methods if method.startswith("std/")]
        means = {name: self.home_mean(budget, name, split) for name in names}
        scored = {name: mean for name, mean in means.items() if mean is not None}
        return max(scored, key=lambda name: scored[name]) if scored else None

    def _final_problems(self, role: str) -> pd.DataFrame:
        frame = self.problem_scores
        return frame[frame["is_final"] & (frame["split"] == self.report_split) & (frame["role"] == role)]


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    frame["is_final"] = frame["is_final"].map(lambda value: value is True or value == 1).astype(bool)
    frame["is_final"] |= frame["method"] == "base"
    rounds = pd.to_numeric(frame["round"], errors="coerce").fillna(0)
    frame["round"] = rounds.astype(int if (rounds % 1 == 0).all() else float)
    for name in ("budget", "method", "benchmark", "split", "role"):
        if name in frame:
            frame[name] = frame[name].astype(str)
    return frame


def _by_problem(frame: pd.DataFrame, series: list[str]) -> pd.DataFrame:
    """Mean share by problem (rows: benchmark and problem) and series (columns): seeds are averaged first."""
    means = frame.groupby(["benchmark", "problem_id", *series], sort=False)["share"].mean()
    return means.unstack(series).sort_index(axis=1, level=0) if len(series) > 1 else means.unstack(series[0])


def _column_estimates(table: pd.DataFrame, num_resamples: int, bounds: tuple[float, float]) -> dict[Any, Estimate]:
    """(mean, low, high) by column, whose values lie within the bounds; columns over the same problems are resampled
    together."""
    found: dict[Any, Estimate] = {}
    groups: dict[bytes, list[Any]] = {}
    for column in table.columns:
        groups.setdefault(table[column].notna().to_numpy().tobytes(), []).append(column)
    for columns in groups.values():
        values = table[columns].dropna().to_numpy(dtype=np.float64)
        if len(values):
            lows, highs = bootstrap_intervals(values, num_resamples, bounds=bounds)
            estimates = zip(values.mean(axis=0).tolist(), lows.tolist(), highs.tolist(), strict=True)
            found.update(zip(columns, estimates, strict=True))
    return {column: found[column] for column in table.columns if column in found}


def _estimates(
    frame: pd.DataFrame, keys: list[str], series: list[str], num_resamples: int
) -> dict[tuple[Any, ...], Estimate]:
    """(mean, low, high) by (*keys, *series)."""
    found: dict[tuple[Any, ...], Estimate] = {}
    for key, group in frame.groupby(keys, sort=False):
        for column, estimate in _column_estimates(_by_problem(group, series), num_resamples, (0.0, 1.0)).items():
            found[(*key, *(column if isinstance(column, tuple) else (column,)))] = estimate
    return found
