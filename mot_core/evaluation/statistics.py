"""Scores, intervals and tests over problems, so that every figure of the report rests on the same arithmetic.

Invariant: a result is a function of the values and the seed alone. The order of the problems does not
matter (values are sorted before any resampling), and no global random state is read or written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

PERMUTATION, MCNEMAR = "permutation", "mcnemar"
"""Names of the paired tests: random sign flips, and the exact binomial test on discordant problems."""

# Resamples are drawn in chunks of about this many (resample, problem) cells: 16 MB of indices at a time.
_CELLS_PER_CHUNK = 2_000_000


@dataclass(frozen=True)
class PairedComparison:
    """a − b over the same problems: the mean difference, its interval, and the p-value of `test`.

    `sd` is the sample deviation of the differences by problem; None for one problem.
    """

    delta: float
    ci_low: float
    ci_high: float
    p_value: float
    num_problems: int
    test: str
    sd: float | None


class SeedSummary(NamedTuple):
    """Mean over seeds, sample deviation and t interval; all but the mean are None for one seed."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None


def avg_at_k(num_correct: ArrayLike, num_samples: ArrayLike) -> FloatArray:
    """Share of correct samples, problem by problem (the benchmark's avg@k is the mean of these)."""
    correct, samples = np.broadcast_arrays(_counts(num_correct, "num_correct"), _counts(num_samples, "num_samples"))
    _check_counts(correct, samples)
    return np.asarray(correct / samples, dtype=np.float64)


def pass_at_k(num_correct: ArrayLike, num_samples: int, k: int) -> FloatArray:
    """Unbiased chance that one of k samples is correct, problem by problem (arXiv 2107.03374, eq. 1).

    1 − C(n − c, k) / C(n, k), as a product so that nothing overflows. Raises ValueError for k outside 1…n.
    """
    correct = _counts(num_correct, "num_correct")
    _check_counts(correct, np.asarray(num_samples))
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs 1 <= k <= num_samples; got k = {k}, num_samples = {num_samples}")
    # C(n − c, k) / C(n, k) = Π_{i<k} (n − c − i) / (n − i); the factor 0 appears exactly when n − c < k.
    offsets = np.arange(k)
    factors = np.clip(num_samples - correct[..., None] - offsets, 0, None) / (num_samples - offsets)
    return np.asarray(1.0 - factors.prod(axis=-1), dtype=np.float64)


def majority_vote(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of several, the one seen first. None only if no sample gave an answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None  # most_common keeps first-seen order among equals


def standard_error(values: ArrayLike) -> float | None:
    """Sample deviation (n − 1) over √n: the standard error of the mean; None for fewer than two values."""
    array = _finite(values, "values")
    return float(array.std(ddof=1) / np.sqrt(array.size)) if array.size > 1 else None


def bootstrap_intervals(
    per_problem: ArrayLike, num_resamples: int = 10_000, seed: int = 0, level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """Percentile bootstrap intervals of the column means of `per_problem`, shape (problems, series).

    The columns share their resamples; each interval is the one that the column alone would get. A column of one value
    has no width by the bootstrap, whatever the number of problems. With `bounds`, the least and the largest value that a
    problem can have, it gets the interval of `_of_one_value` instead.
    """
    values = np.sort(_finite(per_problem, "per_problem"), axis=0)
    if values.ndim != 2 or values.shape[0] == 0:
        raise ValueError(f"per_problem must be (problems, series) with at least one problem; got {values.shape}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be positive; got {num_resamples}")
    num_problems = values.shape[0]
    rng = np.random.default_rng(seed)
    means = np.empty((num_resamples, values.shape[1]))
    chunk = max(1, _CELLS_PER_CHUNK // num_problems)
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        drawn = rng.integers(0, num_problems, size=(rows, num_problems))
        drawn += np.arange(rows)[:, None] * num_problems
        # How often each resample holds each problem: one matrix product then serves every series.
        times = np.bincount(drawn.ravel(), minlength=rows * num_problems).reshape(rows, num_problems)
        means[start : start + rows] = times @ values / num_problems
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return (low, high) if bounds is None else _of_one_value(values, low, high, level, bounds)


def _of_one_value(
    values: FloatArray, low: FloatArray, high: FloatArray, level: float, bounds: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Intervals with those of columns that hold one value c replaced by an exact bound.

    If none of n problems departs from c, the rate of those that do is below u = 1 − (1 − level)^(1/n) at that level
    (Clopper and Pearson 1934; about 3/n at 95 %, the rule of three of Hanley and Lippman-Hand 1983). The mean then lies
    between c − u (c − least) and c + u (largest − c), whatever the values of those that depart.
    """
    departing = 1.0 - (1.0 - level) ** (1.0 / values.shape[0])
    same = values[-1] - values[0] <= 1e-12  # sorted; means over seeds differ in their last bits
    value = values[0]
    return (
        np.where(same, value - departing * (value - bounds[0]), low),
        np.where(same, value + departing * (bounds[1] - value), high),
    )


def bootstrap_ci(
    per_problem: ArrayLike, num_resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value a problem."""
    values = np.asarray(per_problem, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"per_problem must hold one value a problem; got shape {values.shape}")
    low, high = bootstrap_intervals(values[:, None], num_resamples, seed, level)
    return float(low[0]), float(high[0])


def paired_comparison(
    a: ArrayLike, b: ArrayLike, seed: int = 0, num_resamples: int = 10_000, one_answer: bool = False
) -> PairedComparison:
    """Compare two methods on the same problems: `a` and `b` hold one share of right samples a problem, in the same order.

    The p-value is two-sided, from `num_resamples` random sign flips of the differences, with one added to
    both counts so that it is never 0 (Phipson and Smyth 2010). `one_answer` says that each share is of one answer,
    right or wrong: then it is that of the exact McNemar test.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(
            f"a and b must hold one value for each of the same problems; got shapes {first.shape} and {second.shape}"
        )
    return paired_comparisons((first - second)[:, None], seed, num_resamples, one_answer)[0]


def paired_comparisons(
    differences: ArrayLike, seed: int = 0, num_resamples: int = 10_000, one_answer: bool = False
) -> list[PairedComparison]:
    """`paired_comparison` for each column of `differences`, shape (problems, pairs), with shared resamples and flips:
    each column's result is the one that it alone would get."""
    values = _finite(differences, "differences")
    low, high = bootstrap_intervals(values, num_resamples, seed, bounds=(-1.0, 1.0))
    p_values = mcnemar_p_values(values) if one_answer else _sign_flip_p_values(values, num_resamples, seed)
    test = MCNEMAR if one_answer else PERMUTATION
    return [
        PairedComparison(
            float(column.mean()), float(low[at]), float(high[at]), float(p_values[at]), column.size, test,
            float(column.std(ddof=1)) if column.size > 1 else None,
        )
        for at, column in enumerate(values.T)
    ]  # fmt: skip


def mcnemar_p_values(differences: ArrayLike) -> FloatArray:
    """Two-sided exact p-values of McNemar's test (1947) for each column of differences −1, 0 or 1, shape (problems, pairs).

    Given the discordant pairs, those in favour of one side are Binomial(discordant, 1/2) if nothing sets the two apart.
    """
    from scipy.special import bdtr  # as below: not scipy.stats

    values = _finite(differences, "differences")
    if not np.all(np.isin(values, (-1.0, 0.0, 1.0))):
        raise ValueError("McNemar's test needs one answer a problem on each side: differences of -1, 0 or 1")
    won, lost = np.count_nonzero(values > 0, axis=0), np.count_nonzero(values < 0, axis=0)
    return np.minimum(1.0, 2.0 * np.asarray(bdtr(np.minimum(won, lost), won + lost, 0.5), dtype=np.float64))


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's step-down adjusted p-values, in the order given: each at least the raw value, at most 1."""
    raw = _finite(p_values, "p_values")
    if raw.ndim != 1 or np.any((raw < 0.0) | (raw > 1.0)):
        raise ValueError(f"p_values must be a list of numbers in [0, 1]; got {raw.tolist()}")
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(raw.size, 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def mean_and_interval(per_seed: ArrayLike, level: float = 0.95) -> SeedSummary:
    """Mean, sample deviation (n − 1) and Student's t interval over seeds."""
    values = _finite(per_seed, "per_seed")
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"per_seed must hold one value a seed, for at least one seed; got shape {values.shape}")
    mean = float(values.mean())
    if values.size == 1:
        return SeedSummary(mean, None, None, None)
    from scipy.special import stdtrit  # scipy.stats takes half a second to import; this is all that we need

    sd = float(values.std(ddof=1))
    half = float(stdtrit(values.size - 1, 0.5 + level / 2.0)) * sd / float(np.sqrt(values.size))
    return SeedSummary(mean, sd, mean - half, mean + half)


def _sign_flip_p_values(differences: FloatArray, num_flips: int, seed: int) -> FloatArray:
    # Sorted magnitudes make p the same for (a, b), (b, a) and any problem order.
    magnitudes = np.sort(np.abs(differences), axis=0)
    # Equal sums must count as ties whatever the order of addition.
    bar = np.abs(differences.sum(axis=0)) - 1e-9 * magnitudes.sum(axis=0)
    rng = np.random.default_rng([seed, 1])  # a stream of its own, apart from the bootstrap's
    as_extreme = np.zeros(differences.shape[1])
    chunk = max(1, _CELLS_PER_CHUNK // magnitudes.shape[0])
    for start in range(0, num_flips, chunk):
        rows = min(chunk, num_flips - start)
        signs = rng.integers(0, 2, size=(rows, magnitudes.shape[0]), dtype=np.int8) * 2.0 - 1.0
        as_extreme += np.count_nonzero(np.abs(signs @ magnitudes) >= bar, axis=0)
    return np.asarray((as_extreme + 1.0) / (num_flips + 1.0))


def _finite(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite; got {int(np.count_nonzero(~np.isfinite(array)))} NaN or infinite")
    return array


def _counts(values: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.size and not np.array_equal(array, np.round(array)):
        raise ValueError(f"{name} must be whole numbers; got {array.tolist()}")
    return array


def _check_counts(correct: NDArray[Any], samples: NDArray[Any]) -> None:
    if np.any(samples < 1):
        raise ValueError(f"num_samples must be at least 1; got {int(np.min(samples))}")
    if np.any(correct < 0) or np.any(correct > samples):
        raise ValueError(
            f"num_correct must lie in 0…num_samples; got {int(np.min(correct))}…{int(np.max(correct))} "
            f"for {int(np.min(samples))} samples or more"
        )
