"""Power by simulation: at the computed size the test rejects as often as promised; and the split of the variance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mot_core.comparison import power_of
from mot_core.evaluation.power import DIFFERENCE_OF_INTEREST, Power, power_sentence, sampling_share
from mot_core.evaluation.statistics import paired_comparisons


def drawn(rng: np.random.Generator, shape: tuple[int, ...], k: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two students, shape (*shape, k): problems of every difficulty, and noise that the two share by sample."""
    level = rng.beta(1.2, 1.2, shape)
    first, second = np.clip(level + gain + 0.1 * rng.standard_normal(shape), 0, 1), level
    noise = rng.random((*shape, k))
    own = rng.random((*shape, k)) < 0.5  # half of the samples go their own way
    other = np.where(own, rng.random((*shape, k)), noise)
    return noise < first[..., None], other < second[..., None]


@pytest.mark.parametrize("k", [1, 4])
def test_at_the_computed_size_the_test_finds_the_difference_four_times_in_five(k: int) -> None:
    rng = np.random.default_rng(10 + k)
    first, second = drawn(rng, (40_000,), k, 0.06)
    differences = first.mean(axis=1) - second.mean(axis=1)
    delta, sd = float(differences.mean()), float(differences.std(ddof=1))
    size = Power(delta, differences.size, k, sd, None).problems_needed(delta)
    assert size is not None and 80 < size < 1500
    repeats = 600
    a, b = drawn(rng, (size, repeats), k, 0.06)
    found = paired_comparisons(a.mean(axis=2) - b.mean(axis=2), num_resamples=400, one_answer=k == 1)
    rejected = float(np.mean([one.p_value < 0.05 for one in found]))
    # Four standard errors of 600 repeats are 0.065; the exact test of k = 1 is conservative by up to 0.02.
    assert rejected == pytest.approx(0.8, abs=0.065)


def test_the_detectable_difference_is_the_one_that_needs_these_problems() -> None:
    power = Power(0.02, 250, 4, 0.4, 0.5)
    assert power.detectable == pytest.approx(2.8016 * 0.4 / math.sqrt(250), rel=1e-4)
    assert power.problems_needed(power.detectable or 0.0) in (250, 251)
    assert power.problems_needed(0.03) == math.ceil((2.80159 * 0.4 / 0.03) ** 2) == 1396
    assert power.problems_needed(-0.03) == 1396
    assert power.problems_needed(0.0) is None


def test_the_samples_noise_is_told_from_the_problems_spread() -> None:
    """With 8 samples the share at k = 2 and at k = 8 must agree with the variance that is seen at each."""
    rng = np.random.default_rng(4)
    first, second = drawn(rng, (60_000,), 8, 0.05)
    seen = {k: float((first[:, :k].mean(axis=1) - second[:, :k].mean(axis=1)).var(ddof=1)) for k in (2, 8)}
    share = sampling_share(first[:, :2], second[:, :2])
    assert share is not None and 0.3 < share < 0.95
    power = Power(0.05, 60_000, 2, math.sqrt(seen[2]), share)
    least, most = power.shrinkage(samples=4)
    assert least == most == pytest.approx(math.sqrt(seen[8] / seen[2]), rel=0.01)
    # As if the two were independent it would be overestimated: the noise that they share cancels.
    p, q = first[:, :8].mean(axis=1), second[:, :8].mean(axis=1)
    independent = float((p * (1 - p) + q * (1 - q)).mean() * 8 / 7) / 2
    assert independent > 1.15 * share * seen[2]


def test_equal_samples_have_no_noise_and_more_of_them_do_nothing() -> None:
    first, second = np.tile([[1.0], [0.0], [1.0]], (1, 4)), np.zeros((3, 4))
    assert sampling_share(first, second) == 0.0
    assert Power(0.67, 3, 4, 0.58, 0.0).shrinkage(samples=4) == (1.0, 1.0)


def test_more_problems_shrink_all_of_it_and_one_sample_gives_bounds() -> None:
    assert Power(0.1, 50, 1, 0.5, None).shrinkage(problems=4) == (0.5, 0.5)
    assert Power(0.1, 50, 1, 0.5, None).shrinkage(samples=4) == (0.5, 1.0)
    assert Power(0.1, 50, 2, 0.5, 0.5).shrinkage(samples=4)[0] == pytest.approx(math.sqrt(0.625))
    assert sampling_share(np.ones((5, 1)), np.zeros((5, 1))) is None
    assert sampling_share(np.ones((5, 3)), np.zeros((5, 3))) is None


def test_noise_alone_has_a_share_of_at_most_one() -> None:
    rng = np.random.default_rng(0)
    shares = [sampling_share(rng.random((20, 2)) < 0.5, rng.random((20, 2)) < 0.5) for _ in range(50)]
    assert max(share for share in shares if share is not None) == 1.0


def test_the_sentence() -> None:
    assert power_sentence(Power(0.012, 200, 4, 0.4, 0.5)) == (
        "With 200 problems and k = 4, a difference of 7.9 points is found with a power of 80 %; 3.0 points would take 1,396 "
        "problems, the observed 1.2 points 8,721. k = 16 instead of 4 would lower the detectable difference from 7.9 to 6.3 "
        "points, 4 times the problems to 4.0 points."
    )
    one = power_sentence(Power(0.0, 200, 1, 0.4, None))
    assert "observed" not in one and "from 7.9 to between 4.0 and 7.9 points" in one
    assert "not even the largest possible" in power_sentence(Power(0.5, 2, 1, 0.7, None))
    assert "is not known" in power_sentence(Power(0.0, 200, 4, 0.0, None))


def test_a_table_row_says_the_same() -> None:
    row = {"delta": 0.012, "num_problems": 200, "num_samples": 4, "sd": 0.4, "sampling_share": float("nan")}
    assert power_of(row) == Power(0.012, 200, 4, 0.4, None)
    assert DIFFERENCE_OF_INTEREST == 0.03
