"""Outcomes made of shares by problem, for tests of what studies say about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mot_core.analysis.outcomes import Outcomes
from mot_core.results import TABLE_COLUMNS, Results

Shares = Sequence[float]
"""One share of right samples a problem, in quarters."""


def results_of(
    methods: Mapping[str, Shares], *, seeds: Sequence[int] = (1,), roles: Mapping[str, str] | None = None,
    rounds: Mapping[str, Mapping[int, Shares]] | None = None,
) -> Results:  # fmt: skip
    """Results whose final students have these shares on dev and on test alike; `rounds` are on dev only. A method `x@b` has
    its shares on benchmark b, else on `sums`."""
    scores: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []

    def add(key: str, shares: Shares, split: str, round_index: int, is_final: bool) -> None:
        method, _, benchmark = key.partition("@")
        benchmark = benchmark or "sums"
        role = (roles or {}).get(benchmark, "home")
        for seed in seeds:
            place = {"budget": "matched_path", "method": method, "seed": seed, "round": round_index, "is_final": is_final,
                     "benchmark": benchmark, "split": split}  # fmt: skip
            scores.append(
                {**place, "role": role, "k": 4, "num_problems": len(shares), "avg_at_k": sum(shares) / len(shares)}
            )
            problems.extend(
                {**place, "problem_id": f"p{index}", "num_correct": round(4 * share), "num_samples": 4}
                for index, share in enumerate(shares)
            )

    for key, shares in methods.items():
        for split in ("dev", "test"):
            add(key, shares, split, 0 if key.startswith("base") else 5, True)
    for key, by_round in (rounds or {}).items():
        for round_index, shares in by_round.items():
            add(key, shares, "dev", round_index, False)
    frames = {
        name: pd.DataFrame({"scores": scores, "problem_scores": problems}.get(name, []), columns=list(columns))
        for name, columns in TABLE_COLUMNS.items()
    }
    return Results(run_id="made", spec={}, summary={}, provenance={}, **frames)


def outcomes_of(
    cells: Mapping[str, Mapping[str, Shares]], coordinates: Mapping[str, dict[str, Any]] | None = None
) -> Outcomes:
    """Outcomes of several cells."""
    made = Outcomes()
    for name, methods in cells.items():
        made.add(name, (coordinates or {}).get(name, {}), results_of(methods))
    return made
