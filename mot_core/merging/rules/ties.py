"""TIES (Yadav et al. 2023, arXiv 2306.01708), tensor by tensor: trim each update to its largest values, elect a sign a
coordinate, average the values that agree with it.

    τᵏ = the ⌊density × n⌋ values of Δᵏ largest in magnitude, the rest 0 (values equal to the smallest one kept stay too)
    γ  = sign(Σₖ wₖ τᵏ); where the sum is 0, nothing moves
    θ  = θ₀ + λ Σₖ∈A wₖ τᵏ / Σₖ∈A wₖ, A = {k : sign(τᵏ) = γ}

The threshold is exact: a sample brackets it, and one pass over the tensor counts what lies above and gathers what lies
inside. A bracket that missed is widened, at last to the whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from mot_core.merging.rules.base import Block, Rule, of_updates

if TYPE_CHECKING:
    import torch

# Standard errors of the sampled quantile on either side of it, by attempt; after these, no bracket at all.
_MARGINS = (5.0, 40.0)
_TINY = 1e-300


@dataclass(frozen=True)
class Bracket:
    """Magnitudes between which a branch's threshold is thought to lie, and how many values it keeps."""

    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """Of one run and branch: how many magnitudes are above the bracket and at its ends, and those inside."""

    above: int
    at_high: int
    inside: np.ndarray[Any, np.dtype[np.float64]]
    at_low: int


class Ties(Rule):
    """Weights are free but must not be negative; they count in the election and in the mean."""

    source: ClassVar[str] = "trim, elect sign, disjoint mean of the updates (TIES, arXiv 2306.01708)"
    averages: ClassVar[bool] = False
    sample_size: ClassVar[int] = 1 << 18

    density: float = Field(0.2, gt=0.0, le=1.0, description="share of each update that is kept (paper: 0.2)")
    scale: float = Field(1.0, description="λ")
    normalize: bool = Field(True, description="false: the sum of what agrees, not its mean")

    @property
    def surveys(self) -> bool:
        return True

    def prepare(self, sample: Block, size: int, attempt: int) -> list[Bracket] | None:
        _, updates = of_updates(sample)
        if updates.shape[1] == size or attempt >= len(_MARGINS):
            return None
        brackets = []
        for branch, update in enumerate(updates):
            magnitudes = update.abs().sort(descending=True).values
            share = sample.parameter(branch, "density", self.density)
            count = len(magnitudes)
            margin = _MARGINS[attempt] * math.sqrt(share * (1.0 - share) * count) + 2.0
            first, last = (int(share * count + side * margin) for side in (-1.0, 1.0))
            # Beyond the sample's own ends the bracket is open.
            high = float(magnitudes[first]) if first >= 0 else math.inf
            low = float(magnitudes[last]) if last < count else -1.0
            brackets.append(Bracket(low, high))
        return brackets

    def scan(self, block: Block, idea: list[Bracket] | None) -> tuple[list[float], list[Part]]:
        _, updates = of_updates(block)
        parts, densities = [], []
        for branch, update in enumerate(updates):
            bracket = idea[branch] if idea is not None else Bracket(-1.0, math.inf)
            magnitudes = update.abs_().numpy()
            inside = magnitudes[np.flatnonzero((magnitudes > bracket.low) & (magnitudes < bracket.high))]
            above = int(np.count_nonzero(magnitudes > bracket.high))
            at_high = int(np.count_nonzero(magnitudes == bracket.high))
            at_low = int(np.count_nonzero(magnitudes == bracket.low)) if bracket.low < bracket.high else 0
            parts.append(Part(above, at_high, inside, at_low))
            densities.append(block.parameter(branch, "density", self.density))
        return densities, parts

    def settle(
        self,
        parts: list[tuple[list[float], list[Part]]],
        idea: list[Bracket] | None,
        size: int,
        weights: Sequence[float],
    ) -> list[float] | None:
        """Each branch's threshold: the smallest magnitude that is kept."""
        thresholds = []
        for branch, density in enumerate(parts[0][0]):
            wanted = max(1, int(density * size))
            own = [found[branch] for _, found in parts]
            bracket = idea[branch] if idea is not None else Bracket(-1.0, math.inf)
            threshold = _kth_largest(own, wanted, bracket)
            if threshold is None:
                return None
            thresholds.append(threshold)
        return thresholds

    def merge(self, block: Block) -> torch.Tensor:
        start, updates = of_updates(block)
        for update, threshold in zip(updates, block.survey, strict=True):
            if threshold > 0.0:
                # It keeps what is larger than its argument.
                update.copy_(update.hardshrink(math.nextafter(threshold, 0.0)))
        return elected(updates, block.weights, normalize=self.normalize).mul_(self.scale).add_(start)


def _kth_largest(parts: list[Part], wanted: int, bracket: Bracket) -> float | None:
    above = sum(part.above for part in parts)
    if wanted <= above:
        return None
    above += sum(part.at_high for part in parts)
    if wanted <= above:
        return bracket.high
    inside = sum(len(part.inside) for part in parts)
    if wanted <= above + inside:
        place = inside - (wanted - above)
        return float(np.partition(np.concatenate([part.inside for part in parts]), place)[place])
    above += inside + sum(part.at_low for part in parts)
    return bracket.low if wanted <= above else None


def elected(updates: torch.Tensor, weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    """The weighted mean (or sum) of the values whose sign is that of Σₖ wₖ τᵏ. `updates` is overwritten."""
    sign = updates[0] * weights[0]
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        sign.add_(update, alpha=weight)
    sign.sign_()
    total, shares = sign.new_zeros(sign.shape), sign.new_zeros(sign.shape)
    for update, weight in zip(updates, weights, strict=True):
        agreeing = update.mul_(sign).clamp_min_(0.0)
        total.add_(agreeing, alpha=weight)
        if normalize:
            shares.add_(agreeing.sign_(), alpha=weight)
    total.mul_(sign)
    # Where nothing agrees the sum is 0, and so is what it is divided by.
    return total.div_(shares.clamp_min_(_TINY)) if normalize else total
