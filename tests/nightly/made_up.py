"""Results that no run gave, of either sign, for the pure parts of a night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mot_core.nightly.nights import Night
from mot_core.nightly.results import Finished
from mot_core.nightly.spec import Cell, Nightly, cells_of

STEPS = frozenset({"a", "b"})


def nightly(**fields: Any) -> Nightly:
    """A nightly over the preset `smoke`."""
    return Nightly.model_validate({"name": "made-up", "base": "smoke", **fields})


def grid_of(**grid: list[Any]) -> tuple[Cell, ...]:
    return cells_of(nightly(grid=grid))


def summary(*margins: tuple[str, float, float, float]) -> dict[str, Any]:
    """A run's summary with MoT minus rivals on the benchmark sums, as `(rival, delta, low, high)`."""
    rows = [
        {"a": "mot", "b": rival, "benchmark": "sums", "budget": "matched_path", "delta": delta, "ci95": [low, high]}
        for rival, delta, low, high in margins
    ]
    sums = {"avg_at_k": 0.5, "ci95": [0.4, 0.6], "num_problems": 24}
    return {"comparisons": rows, "budgets": {"matched_path": {"mot": {"benchmarks": {"sums": sums, "panel": sums}}}}}


def finished(
    cell: Cell, *margins: tuple[str, float, float, float], num_seeds: int = 1, result: str = "r1", steps: Any = STEPS
) -> Finished:
    seeds = cell.with_seeds(num_seeds).training_seeds
    return Finished(Path(f"runs/{cell.spec.name}-{result}"), seeds, result, frozenset(steps), summary(*margins))


def first_night(root: Path) -> Night:
    return Night(root, "0001", 1_000_000.0, 90.0, 1_234)


def means(method: str, shares: list[float], benchmark: str = "sums") -> dict[str, Any]:
    problems = {f"p{number:03d}": share for number, share in enumerate(shares)}
    return {"budget": "matched_path", "method": method, "benchmark": benchmark, "problems": problems}
