"""Who differs from whom: paired by problem on the test split, seeds pooled, Holm over each budget's table."""

from __future__ import annotations

from typing import Any

import numpy as np

from mot_core.evaluation.statistics import holm, paired_comparisons

ESTIMATE_SEED = 0
Rows = list[dict[str, Any]]


def problem_means(problem_scores: Rows, split: str = "test") -> dict[tuple[str, str, str], dict[str, float]]:
    """`(budget, method, benchmark)` → problem → share of right samples, averaged over seeds; final students only."""
    shares: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in problem_scores:
        if row["is_final"] and row["split"] == split:
            place = shares.setdefault((row["budget"], row["method"], row["benchmark"]), {})
            place.setdefault(row["problem_id"], []).append(row["num_correct"] / row["num_samples"])
    return {key: {p: float(np.mean(v)) for p, v in sorted(by.items())} for key, by in shares.items()}


def comparison_rows(problem_scores: Rows, best: dict[str, dict[str, str]], num_resamples: int) -> Rows:
    """Rows of the `comparisons` table: each method against the best single teacher (chosen on dev) and against the
    untrained student, and `mot` against every other method."""
    means = problem_means(problem_scores)
    seeds = {(row["budget"], row["method"]): set[int]() for row in problem_scores}
    for row in problem_scores:
        seeds[row["budget"], row["method"]].add(row["seed"])
    rows: Rows = []
    for budget in dict.fromkeys(budget for budget, _, _ in means):
        methods = list(dict.fromkeys(method for b, method, _ in means if b == budget))
        benchmarks = list(dict.fromkeys(benchmark for b, _, benchmark in means if b == budget))
        table: Rows = []
        pairs = _pairs(methods, best.get(budget, {}).get("dev"))
        for benchmark in benchmarks if pairs else ():
            scores = {method: means[budget, method, benchmark] for method in methods}
            problems = list(scores[methods[0]])
            columns = {m: np.array([by_problem[p] for p in problems]) for m, by_problem in scores.items()}
            differences = np.stack([columns[first] - columns[second] for first, second in pairs], axis=1)
            compared = paired_comparisons(differences, ESTIMATE_SEED, num_resamples)
            for (first, second), found in zip(pairs, compared, strict=True):
                table.append(
                    {
                        "budget": budget, "a": first, "b": second, "benchmark": benchmark, "delta": found.delta,
                        "ci_low": found.ci_low, "ci_high": found.ci_high, "p_value": found.p_value,
                        "num_problems": found.num_problems,
                        "num_seeds": min(len(seeds[budget, first]), len(seeds[budget, second])),
                    }
                )  # fmt: skip
        for row, adjusted in zip(table, holm([row["p_value"] for row in table]), strict=True):
            row["p_value_holm"] = float(adjusted)
        rows += table
    return rows


def _pairs(methods: list[str], best_single: str | None) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    if best_single is not None:
        pairs += [(method, best_single) for method in methods if method != best_single]
    pairs += [("mot", method) for method in methods if method != "mot" and "mot" in methods]
    pairs += [(method, "base") for method in methods if method != "base" and "base" in methods]
    return list(dict.fromkeys(pair for pair in pairs if (pair[1], pair[0]) not in pairs[: pairs.index(pair)]))
