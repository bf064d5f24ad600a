"""What finished runs say of cells: their results, how the reference stands to its rivals, and what moved since.

Invariant: a result's name is the hash of what was found (scores, weights, steps), so a run that only reuses what another
one published brings no new result.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.comparison import ESTIMATE_SEED, problem_means
from mot_core.errors import StoreError
from mot_core.evaluation.statistics import holm, paired_comparison
from mot_core.files import write_atomically
from mot_core.identity import fingerprint
from mot_core.nightly.spec import Cell, Reference
from mot_core.results import Results
from mot_core.runs import SUMMARY, read_index
from mot_core.spec import Experiment

Means = list[dict[str, Any]]
"""A row a budget, method and benchmark, with `problems`: problem → share of right samples, final students on test."""


@dataclass(frozen=True)
class Finished:
    """A cell's newest finished run with the most training seeds."""

    run_dir: Path
    seeds: tuple[int, ...]
    result: str
    steps: frozenset[str]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Margin:
    """The reference minus one rival on one benchmark, with its 95 % interval over problems."""

    budget: str
    rival: str
    benchmark: str
    delta: float
    low: float
    high: float

    @property
    def is_undecided(self) -> bool:
        return self.low <= 0.0 <= self.high

    @property
    def overlap(self) -> float:
        """The interval's share on the lesser side of 0: 0 if it is decided, at most a half."""
        if not self.is_undecided:
            return 0.0
        width = self.high - self.low
        return min(-self.low, self.high) / width if width else 0.5


@dataclass(frozen=True)
class Moved:
    """One method's score after a change minus before, paired by problem; `p_value_holm` is adjusted over its table."""

    budget: str
    method: str
    benchmark: str
    before: float
    after: float
    delta: float
    low: float
    high: float
    p_value_holm: float
    num_problems: int

    @property
    def is_lower(self) -> bool:
        return self.high < 0.0

    @property
    def is_higher(self) -> bool:
        return self.low > 0.0


def finished_run(store: Store, cell: Cell, max_seeds: int) -> Finished | None:
    """The cell's newest finished run, of those with the most seeds; None if it has never run to its end."""
    for num_seeds in reversed(cell.seed_counts(max_seeds)):
        found = finished_run_of(store, cell.with_seeds(num_seeds))
        if found is not None:
            return found
    return None


def finished_run_of(store: Store, spec: Experiment) -> Finished | None:
    """The newest finished run of one experiment."""
    directories = (store.root / "runs").glob(f"{spec.name}-{spec.identity[:8]}-*")
    for run_dir in sorted(directories, key=lambda path: (len(path.name), path.name), reverse=True):
        # Neither is there before a run's end, nor whole in a store that was damaged.
        with contextlib.suppress(OSError, ValueError, KeyError):
            summary = json.loads((run_dir / SUMMARY).read_text())
            if summary["spec_identity"] == spec.identity:
                steps = frozenset(step["identity"] for step in read_index(run_dir)["steps"])
                return Finished(run_dir, spec.training_seeds, _result(summary, steps), steps, summary)
    return None


def _result(summary: dict[str, Any], steps: frozenset[str]) -> str:
    scores = {
        budget: {method: found["benchmarks"] for method, found in methods.items()}
        for budget, methods in summary["budgets"].items()
    }
    weights = {
        method: {seed: row["sha256"] for seed, row in seeds.items()} for method, seeds in summary["students"].items()
    }
    return fingerprint([summary["spec_identity"], sorted(steps), scores, weights])


def margins_of(summary: dict[str, Any], spec: Experiment, reference: Reference) -> tuple[Margin, ...]:
    """The reference against its rivals, as the run compared them."""
    home = tuple(one.name for one in spec.evaluation.benchmarks if one.role == "home")
    margins = []
    for row in summary["comparisons"]:
        low, high = row["ci95"]
        if row["b"] == reference.method:
            rival, delta, low, high = row["a"], -row["delta"], -high, -low
        elif row["a"] == reference.method:
            rival, delta = row["b"], row["delta"]
        else:
            continue
        asked = rival in reference.against if reference.against is not None else rival != "base"
        if asked and row["benchmark"] in (reference.benchmarks or home):
            margins.append(Margin(row["budget"], rival, row["benchmark"], delta, low, high))
    return tuple(margins)


def means_of(results: Results) -> Means:
    """Each final student's share of right samples by problem, seeds averaged."""
    found = problem_means(results.problem_scores.to_dict("records"))
    return [
        {"budget": budget, "method": method, "benchmark": benchmark, "problems": problems}
        for (budget, method, benchmark), problems in found.items()
    ]


def moved(before: Means, after: Means, num_resamples: int) -> list[Moved]:
    """How each method's score changed, on the problems that both have. What is equal problem by problem has not moved."""
    earlier = {_place(row): row["problems"] for row in before}
    places, found = [], []
    for row in after:
        old, new = earlier.get(_place(row), {}), row["problems"]
        shared = [problem for problem in new if problem in old]
        if any(old[problem] != new[problem] for problem in shared):
            places.append(_place(row))
            pair = [new[problem] for problem in shared], [old[problem] for problem in shared]
            found.append((pair, paired_comparison(*pair, ESTIMATE_SEED, num_resamples)))
    adjusted = holm([one.p_value for _, one in found])
    return [
        Moved(
            *place, sum(old) / len(old), sum(new) / len(new), one.delta, one.ci_low, one.ci_high, float(p_value),
            one.num_problems,
        )
        for place, ((new, old), one), p_value in zip(places, found, adjusted, strict=True)
    ]  # fmt: skip


def _place(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["budget"], row["method"], row["benchmark"]


class KeptMeans:
    """`STORE/nightly/NAME/results/RESULT.json`: means by problem, which outlive the steps that they were read from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, result: str | None) -> Means | None:
        """The means of a result; None if it was never kept."""
        with contextlib.suppress(OSError, ValueError):
            found: Means = json.loads((self.directory / f"{result}.json").read_text())
            return found
        return None

    def keep(self, store: Store, finished: Finished) -> Means | None:
        """The means of a finished run, kept from now on; None if its steps are gone from the store."""
        found = self.get(finished.result)
        if found is None:
            from mot_core.tables import collect

            try:
                found = means_of(collect(store, finished.run_dir, {}, compare=False))
            except (StoreError, FileNotFoundError):
                return None
            self.directory.mkdir(exist_ok=True)
            write_atomically(self.directory / f"{finished.result}.json", json.dumps(found) + "\n")
        return found


def scores_of(summary: dict[str, Any], benchmarks: Sequence[str]) -> list[dict[str, Any]]:
    """A row a budget, method and benchmark: score and interval of the final students on test."""
    return [
        {
            "budget": budget, "method": method, "benchmark": name, "score": found["avg_at_k"], "ci95": found["ci95"],
            "num_problems": found["num_problems"],
        }
        for budget, methods in summary["budgets"].items()
        for method, entry in methods.items()
        for name, found in entry["benchmarks"].items()
        if name in benchmarks
    ]  # fmt: skip
