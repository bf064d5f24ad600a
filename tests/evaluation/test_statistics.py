"""Statistics against values worked out by hand or by scipy, and the properties that the report relies on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from mot_core.evaluation.statistics import (
    avg_at_k,
    bootstrap_ci,
    bootstrap_intervals,
    holm,
    majority_vote,
    mcnemar_p_values,
    mean_and_interval,
    paired_comparison,
    pass_at_k,
    standard_error,
)

shares = st.integers(0, 8).map(lambda count: count / 8)


@st.composite
def two_methods(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size = draw(st.integers(2, 30))
    a = draw(hnp.arrays(np.float64, size, elements=shares))
    b = draw(hnp.arrays(np.float64, size, elements=shares))
    return a, b


def test_avg_at_k_is_the_share_of_correct_samples() -> None:
    assert avg_at_k([0, 1, 4], 4).tolist() == [0.0, 0.25, 1.0]
    assert avg_at_k([1, 1], [2, 4]).tolist() == [0.5, 0.25]


@pytest.mark.parametrize(("correct", "samples", "k"), [(1, 4, 2), (3, 16, 8), (0, 5, 3), (5, 5, 1), (7, 10, 4)])
def test_pass_at_k_is_the_combinatorial_formula(correct: int, samples: int, k: int) -> None:
    by_hand = 1 - math.comb(samples - correct, k) / math.comb(samples, k)
    assert pass_at_k([correct], samples, k)[0] == pytest.approx(by_hand, abs=1e-12)


def test_pass_at_k_one_of_four_in_two_draws_is_a_half() -> None:
    assert pass_at_k(np.array([1, 2]), 4, 2) == pytest.approx([0.5, 5 / 6])


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_pass_at_one_is_avg_and_pass_at_n_is_any_correct(samples: int, data: st.DataObject) -> None:
    correct = np.array(data.draw(st.lists(st.integers(0, samples), min_size=1, max_size=10)))
    assert pass_at_k(correct, samples, 1) == pytest.approx(avg_at_k(correct, samples))
    assert pass_at_k(correct, samples, samples) == pytest.approx((correct > 0).astype(float))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_k_outside_the_samples(k: int) -> None:
    with pytest.raises(ValueError, match="num_samples = 4"):
        pass_at_k([1], 4, k)


@pytest.mark.parametrize("correct", [[-1], [5], [0.5]])
def test_impossible_counts_are_refused(correct: list[float]) -> None:
    with pytest.raises(ValueError, match="num_correct"):
        avg_at_k(correct, 4)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["7", "8", "8"], "8"),
        (["8", "7", "7", "8"], "8"),
        ([None, None, None, "3"], "3"),
        ([None, None], None),
        ([], None),
        (["", None], ""),
    ],
)
def test_majority_vote(answers: list[str | None], winner: str | None) -> None:
    assert majority_vote(answers) == winner


def test_bootstrap_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).beta(2, 3, size=120)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=5)
    low, high = bootstrap_ci(values)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.003)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.003)


def test_bootstrap_is_deterministic_and_a_constant_has_no_width() -> None:
    values = np.linspace(0, 1, 37)
    assert bootstrap_ci(values, seed=4) == bootstrap_ci(values, seed=4)
    assert bootstrap_ci(values, seed=4) != bootstrap_ci(values, seed=5)
    assert bootstrap_ci(np.full(9, 0.25)) == (0.25, 0.25)


def test_bootstrap_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 1, 50)
    whole = bootstrap_ci(values, num_resamples=500)
    monkeypatch.setattr("mot_core.evaluation.statistics._CELLS_PER_CHUNK", 50 * 7)
    assert bootstrap_ci(values, num_resamples=500) == pytest.approx(whole)


def test_several_series_get_the_interval_that_each_would_get_alone() -> None:
    table = np.random.default_rng(0).random((40, 3))
    low, high = bootstrap_intervals(table)
    for column in range(3):
        assert (low[column], high[column]) == pytest.approx(bootstrap_ci(table[:, column]))


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [[0.1], [0.2]]])
def test_bootstrap_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="per_problem"):
        bootstrap_ci(values)


def test_paired_comparison_by_hand() -> None:
    # Four problems, each 0.5 better: only the two of 16 sign patterns with one sign are as extreme, p ≈ 1/8.
    result = paired_comparison([1.0, 0.75, 0.5, 1.0], [0.5, 0.25, 0.0, 0.5])
    assert (result.delta, result.num_problems, result.sd, result.test) == (0.5, 4, 0.0, "permutation")
    assert result.p_value == pytest.approx(2 / 16, abs=0.012)
    # None of four problems departs: the rate of those that do is below 1 − 0.05^(1/4) = 0.527, and they may be −1 or 1.
    assert (result.ci_low, result.ci_high) == pytest.approx((0.5 - 0.52713 * 1.5, 0.5 + 0.52713 * 0.5), abs=1e-4)


def test_equal_differences_get_the_rule_of_three_and_not_certainty() -> None:
    for size in (20, 200, 2000):
        found = paired_comparison(np.zeros(size), np.zeros(size))
        assert found.ci_high == -found.ci_low == pytest.approx(3 / size, rel=0.08)
        # Clopper and Pearson's one-sided bound for no event in `size`, as scipy computes it.
        theirs = stats.binomtest(0, size, alternative="less").proportion_ci(0.95, method="exact").high
        assert found.ci_high == pytest.approx(theirs)
    seen = np.zeros(200)
    seen[7] = 1.0
    assert paired_comparison(seen, np.zeros(200)).ci_low == 0.0  # the bootstrap, as ever


def test_the_bound_of_equal_differences_covers() -> None:
    """Where one problem in 40 differs, 30 problems without a difference are common; the bound must hold the truth."""
    rng = np.random.default_rng(2)
    rate, size = 0.025, 30
    covered, missed_by_bootstrap = 0, 0
    for drawn in rng.random((400, size)) < rate:
        low, high = bootstrap_intervals(drawn[:, None].astype(float), 200, bounds=(-1.0, 1.0))
        bare_low, bare_high = bootstrap_intervals(drawn[:, None].astype(float), 200)
        covered += bool(low[0] <= rate <= high[0])
        missed_by_bootstrap += not bare_low[0] <= rate <= bare_high[0]
    assert missed_by_bootstrap > 150  # 0.975^30 = 0.47 of the samples hold no difference
    assert covered > 0.95 * 400


def test_mcnemar_agrees_with_scipys_binomial_test() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random((60, 8)) < np.linspace(0.3, 0.9, 8), rng.random((60, 8)) < 0.5
    found = mcnemar_p_values(a.astype(float) - b.astype(float))
    for column in range(8):
        won, lost = int(np.sum(a[:, column] & ~b[:, column])), int(np.sum(b[:, column] & ~a[:, column]))
        assert found[column] == pytest.approx(stats.binomtest(won, won + lost, 0.5).pvalue)
    # By hand: 1 against 8, twice the chance of at most one head in nine, 2 (1 + 9) / 512.
    assert mcnemar_p_values([[1.0]] * 8 + [[-1.0]] + [[0.0]] * 5)[0] == pytest.approx(20 / 512)
    assert mcnemar_p_values(np.zeros((7, 1)))[0] == 1.0


def test_mcnemar_is_the_permutation_test_without_its_chance() -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.random(80) < 0.6).astype(float), (rng.random(80) < 0.45).astype(float)
    exact, drawn = paired_comparison(a, b, one_answer=True), paired_comparison(a, b)
    assert (exact.test, drawn.test) == ("mcnemar", "permutation")
    assert exact.p_value == pytest.approx(drawn.p_value, abs=0.015)
    assert (exact.delta, exact.ci_low, exact.ci_high) == (drawn.delta, drawn.ci_low, drawn.ci_high)


def test_mcnemar_refuses_means_of_several_answers() -> None:
    with pytest.raises(ValueError, match="one answer a problem"):
        paired_comparison([0.5, 1.0], [0.0, 1.0], one_answer=True)


def test_standard_error_agrees_with_scipy() -> None:
    values = [0.25, 1.0, 0.5, 0.5]
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert standard_error([0.3]) is None


@pytest.mark.parametrize(("num_samples", "k"), [(4, 2), (5, 3), (6, 1), (6, 6)])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(num_samples: int, k: int) -> None:
    for correct in range(num_samples + 1):
        answers = [True] * correct + [False] * (num_samples - correct)
        subsets = [any(chosen) for chosen in itertools.combinations(answers, k)]
        assert pass_at_k([correct], num_samples, k)[0] == pytest.approx(sum(subsets) / len(subsets))


def test_paired_p_value_agrees_with_scipy() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(12), rng.random(12) - 0.15
    exact = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        alternative="two-sided",
        n_resamples=2**12,
    )
    assert paired_comparison(a, b).p_value == pytest.approx(exact.pvalue, abs=0.015)


def test_p_value_is_never_zero() -> None:
    assert paired_comparison(np.ones(200), np.zeros(200)).p_value == pytest.approx(1 / 10_001)


def test_identical_methods_do_not_differ() -> None:
    values = np.array([0.1, 0.5, 0.9])
    result = paired_comparison(values, values)
    assert (result.delta, result.p_value) == (0.0, 1.0)
    assert (result.ci_low, result.ci_high) == pytest.approx((-0.6316, 0.6316), abs=1e-4)  # 1 − 0.05^(1/3)


def test_paired_comparison_refuses_other_problems() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        paired_comparison([0.1, 0.2, 0.3], [0.1, 0.2])


@settings(max_examples=30, deadline=None)
@given(two_methods())
def test_order_of_problems_does_not_matter(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    order = np.random.default_rng(len(a)).permutation(len(a))
    straight, shuffled = paired_comparison(a, b), paired_comparison(a[order], b[order])
    assert shuffled.p_value == straight.p_value
    for name in ("delta", "ci_low", "ci_high"):
        assert getattr(shuffled, name) == pytest.approx(getattr(straight, name), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(two_methods())
def test_swapping_the_methods_mirrors_the_result(pair: tuple[np.ndarray, np.ndarray]) -> None:
    forward, backward = paired_comparison(*pair), paired_comparison(*pair[::-1])
    assert backward.delta == pytest.approx(-forward.delta, abs=1e-15)
    assert backward.p_value == forward.p_value
    assert backward.ci_low == pytest.approx(-forward.ci_high, abs=0.06)
    assert forward.ci_low - 1e-12 <= forward.delta <= forward.ci_high + 1e-12


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; monotone: the last is 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_monotone_and_never_below_the_raw_value(p_values: list[float]) -> None:
    raw, adjusted = np.array(p_values), holm(p_values)
    assert np.all(adjusted >= raw)
    assert np.all(adjusted <= 1.0)
    assert np.all(np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0)


def test_holm_refuses_what_is_not_a_probability() -> None:
    with pytest.raises(ValueError, match="p_values"):
        holm([0.5, 1.5])


def test_interval_over_seeds_agrees_with_scipy() -> None:
    per_seed = [0.41, 0.44, 0.39]
    mean, sd, low, high = mean_and_interval(per_seed)
    theirs = stats.t.interval(0.95, 2, loc=np.mean(per_seed), scale=stats.sem(per_seed))
    assert (mean, sd) == pytest.approx((0.41333333333, 0.02516611478))
    assert (low, high) == pytest.approx(theirs)


def test_one_seed_has_no_interval() -> None:
    assert mean_and_interval([0.5]) == (0.5, None, None, None)
