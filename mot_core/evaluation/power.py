"""What a paired comparison could have seen: the least detectable difference, and what more problems or samples would do.

By the normal approximation, for a two-sided test at 5 % and a power of 80 %. Invariant: everything follows from the
spread of the differences by problem; nothing is assumed about a single answer's distribution. The power of the observed
difference is not computed: it is the p-value said again (Hoenig and Heisey 2001).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

LEVEL, POWER = 0.05, 0.8
DIFFERENCE_OF_INTEREST = 0.03
"""The difference in avg@k that `problems_needed` is told for: 3 points."""
MORE = 4
"""How many times the samples or the problems a note considers: both cost the same."""
_QUANTILES = NormalDist().inv_cdf(1.0 - LEVEL / 2.0) + NormalDist().inv_cdf(POWER)  # 1.960 + 0.842


@dataclass(frozen=True)
class Power:
    """One paired comparison's spread. `sd` is the sample deviation of its differences by problem, each over `num_samples`
    samples. `sampling_share` is the share of the variance that is noise of the samples, in [0, 1]; None where it
    cannot be told apart from the problems', as with one sample."""

    delta: float
    num_problems: int
    num_samples: int
    sd: float
    sampling_share: float | None

    @property
    def detectable(self) -> float | None:
        """The difference in avg@k that the test finds with a power of 80 %; None if all problems differ alike."""
        return _QUANTILES * self.sd / math.sqrt(self.num_problems) if self._has_spread else None

    def problems_needed(self, difference: float) -> int | None:
        """The number of problems with which a difference is found with a power of 80 %, samples as they are; None for a
        difference of zero, or if all problems differ alike."""
        if not self._has_spread or difference == 0.0:
            return None
        return max(2, math.ceil((_QUANTILES * self.sd / difference) ** 2))

    def shrinkage(self, *, problems: float = 1.0, samples: float = 1.0) -> tuple[float, float]:
        """By what `detectable` is multiplied with so many times the problems, or samples: the least and the most, equal
        where the sampling share is known. More samples divide that share of the variance alone, more problems all of it
        (Miller 2024, arXiv 2411.00640)."""
        shares = (1.0, 0.0) if self.sampling_share is None else (self.sampling_share, self.sampling_share)
        least, most = (math.sqrt((1.0 - share + share / samples) / problems) for share in shares)
        return least, most

    @property
    def _has_spread(self) -> bool:
        return self.sd > 1e-12  # means over seeds differ in their last bits


def sampling_share(first: ArrayLike, second: ArrayLike) -> float | None:
    """The share of the variance of paired differences that the noise of the samples makes, in [0, 1].

    `first` and `second` have shape (problems, samples): 1 for right and 0 for wrong, or the mean of these over seeds; a
    column is a sample index, at which both sides met the same noise. With d the difference of the two, the noise of a
    problem's mean over k samples is var(d) / k, estimated within the problem (k − 1), so that whatever the common noise
    makes correlate is in it. None for one sample, one problem, or differences that are all equal.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    num_problems, num_samples = differences.shape
    if num_samples < 2 or num_problems < 2:
        return None
    total = float(differences.mean(axis=1).var(ddof=1))
    noise = float(differences.var(axis=1, ddof=1).mean()) / num_samples
    return min(1.0, noise / total) if total > 1e-24 else None


def power_sentence(power: Power) -> str:
    """What the comparison could have seen, and what it would take to see more, in one plain sentence."""
    problems = f"{power.num_problems:,} problem{'' if power.num_problems == 1 else 's'}"
    detectable, for_interest = power.detectable, power.problems_needed(DIFFERENCE_OF_INTEREST)
    if detectable is None or for_interest is None:
        return (
            f"With {problems} and k = {power.num_samples} all problems differ alike, so the spread of the differences, and "
            "with it what could be seen, is not known."
        )
    what = (
        f"a difference of {_points(detectable)} points is found with a power of 80 %"
        if detectable <= 1.0
        else "no difference is found with a power of 80 %, not even the largest possible"
    )
    needed = f"{_points(DIFFERENCE_OF_INTEREST)} points would take {for_interest:,} problems"
    for_observed = power.problems_needed(power.delta)
    if for_observed is not None:
        needed += f", the observed {_points(abs(power.delta))} points {for_observed:,}"
    least, most = power.shrinkage(samples=MORE)
    by_problems, _ = power.shrinkage(problems=MORE)
    to = f"to {_points(least * detectable)} points"
    if power.sampling_share is None:
        to = (
            f"to between {_points(least * detectable)} and {_points(most * detectable)} points (one sample a problem does "
            "not show its own noise)"
        )
    return (
        f"With {problems} and k = {power.num_samples}, {what}; {needed}. k = {MORE * power.num_samples} instead of "
        f"{power.num_samples} would lower the detectable difference from {_points(detectable)} {to}, {MORE} times the "
        f"problems to {_points(by_problems * detectable)} points."
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
