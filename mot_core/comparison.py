"""Who differs from whom: paired by problem on the test split, seeds pooled, Holm over each budget's table.

One seed and one answer a problem on both sides: the exact McNemar test. Otherwise, the permutation test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mot_core.evaluation.power import DIFFERENCE_OF_INTEREST, Power, sampling_share
from mot_core.evaluation.statistics import PairedComparison, holm, paired_comparisons

ESTIMATE_SEED = 0
Rows = list[dict[str, Any]]
Outcomes = dict[tuple[str, str, str], dict[str, Any]]


def problem_means(problem_scores: Rows, split: str = "test") -> dict[tuple[str, str, str], dict[str, float]]:
    """`(budget, method, benchmark)` → problem → share of right samples, averaged over seeds; final students only."""
    shares: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in problem_scores:
        if row["is_final"] and row["split"] == split:
            place = shares.setdefault((row["budget"], row["method"], row["benchmark"]), {})
            place.setdefault(row["problem_id"], []).append(row["num_correct"] / row["num_samples"])
    return {key: {p: float(np.mean(v)) for p, v in sorted(by.items())} for key, by in shares.items()}


def _outcomes(problem_scores: Rows, split: str = "test") -> Outcomes:
    """`(budget, method, benchmark)` → problem → right (1) or wrong by sample index, averaged over seeds."""
    found: dict[tuple[str, str, str], dict[str, list[Any]]] = {}
    for row in problem_scores:
        if row["is_final"] and row["split"] == split:
            place = found.setdefault((row["budget"], row["method"], row["benchmark"]), {})
            place.setdefault(row["problem_id"], []).append(np.array(row["outcomes"], dtype=np.float64))
    return {key: {p: np.mean(v, axis=0) for p, v in by.items()} for key, by in found.items()}


def comparison_rows(problem_scores: Rows, best: dict[str, dict[str, str]], num_resamples: int) -> Rows:
    """Rows of the `comparisons` table: each method against the best single teacher (chosen on dev) and against the
    untrained student, and `mot` against every other method. `problem_scores` have the `outcomes` of
    `mot_core.evaluation.metrics.problem_scores`."""
    means, outcomes = problem_means(problem_scores), _outcomes(problem_scores)
    seeds = {(row["budget"], row["method"]): set[int]() for row in problem_scores}
    for row in problem_scores:
        seeds[row["budget"], row["method"]].add(row["seed"])
    rows: Rows = []
    for budget in dict.fromkeys(budget for budget, _, _ in means):
        methods = list(dict.fromkeys(method for b, method, _ in means if b == budget))
        benchmarks = list(dict.fromkeys(benchmark for b, _, benchmark in means if b == budget))
        table: Rows = []
        all_pairs = _pairs(methods, best.get(budget, {}).get("dev"))
        for benchmark in benchmarks:
            # A vote is over samples of our own: what the harness measures, it does not have.
            asked = [method for method in methods if (budget, method, benchmark) in means]
            pairs = [pair for pair in all_pairs if set(pair) <= set(asked)]
            if not pairs:
                continue
            scores = {method: means[budget, method, benchmark] for method in asked}
            problems = list(scores[asked[0]])
            columns = {m: np.array([by_problem[p] for p in problems]) for m, by_problem in scores.items()}
            samples = {m: np.stack([outcomes[budget, m, benchmark][p] for p in problems]) for m in asked}
            one_answer = all(
                samples[method].shape[1] == 1 and len(seeds[budget, method]) == 1 for pair in pairs for method in pair
            )
            differences = np.stack([columns[first] - columns[second] for first, second in pairs], axis=1)
            compared = paired_comparisons(differences, ESTIMATE_SEED, num_resamples, one_answer)
            for (first, second), found in zip(pairs, compared, strict=True):
                table.append(
                    {
                        "budget": budget, "a": first, "b": second, "benchmark": benchmark, "delta": found.delta,
                        "ci_low": found.ci_low, "ci_high": found.ci_high, "p_value": found.p_value, "test": found.test,
                        "num_problems": found.num_problems,
                        "num_seeds": min(len(seeds[budget, first]), len(seeds[budget, second])),
                        **_power_columns(found, samples[first], samples[second]),
                    }
                )  # fmt: skip
        for row, adjusted in zip(table, holm([row["p_value"] for row in table]), strict=True):
            row["p_value_holm"] = float(adjusted)
        rows += table
    return rows


def _power_columns(found: PairedComparison, first: Any, second: Any) -> dict[str, Any]:
    share = sampling_share(first, second)
    power = Power(found.delta, found.num_problems, first.shape[1], found.sd or 0.0, share)
    return {
        "num_samples": power.num_samples, "sd": found.sd, "sampling_share": share, "detectable": power.detectable,
        "problems_needed": power.problems_needed(DIFFERENCE_OF_INTEREST),
    }  # fmt: skip


def power_of(row: Mapping[str, Any]) -> Power:
    """The power of one row of `comparisons`, from its columns; NaN, as tables have it, is absent."""
    known = {
        name: None if row[name] is None or row[name] != row[name] else row[name] for name in ("sd", "sampling_share")
    }
    return Power(
        float(row["delta"]), int(row["num_problems"]), int(row["num_samples"]), float(known["sd"] or 0.0),
        None if known["sampling_share"] is None else float(known["sampling_share"]),
    )  # fmt: skip


def _pairs(methods: list[str], best_single: str | None) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    if best_single is not None:
        pairs += [(method, best_single) for method in methods if method != best_single]
    pairs += [("mot", method) for method in methods if method != "mot" and "mot" in methods]
    pairs += [(method, "base") for method in methods if method != "base" and "base" in methods]
    return list(dict.fromkeys(pair for pair in pairs if (pair[1], pair[0]) not in pairs[: pairs.index(pair)]))
