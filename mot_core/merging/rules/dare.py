"""DARE (Yu et al. 2024, arXiv 2311.03099): drop each value of an update at random, divide the rest by the share kept, then
merge: by task arithmetic (`dare`) or by TIES' election (`dare_ties`).

What is dropped follows from the seed, the tensor's name, the branch's place and the value's, so threads and shards
change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mot_core.merging.rules.base import Block, Rule, mean_update, of_updates
from mot_core.merging.rules.ties import elected

if TYPE_CHECKING:
    import torch


class Dare(Rule):
    """θ₀ + λ Σₖ wₖ mᵏ ⊙ Δᵏ / density, mᵏ ~ Bernoulli(density)."""

    source: ClassVar[str] = "random drop and rescale, then task arithmetic (DARE, arXiv 2311.03099)"
    averages: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    density: float = Field(0.5, gt=0.0, le=1.0, description="share of each update that is kept, 1 − p")
    scale: float = Field(1.0, description="λ")
    rescale: bool = Field(True, description="divide what is kept by the density")

    def merge(self, block: Block) -> torch.Tensor:
        start, updates = of_updates(block)
        self._drop(block, updates)
        return self._combined(updates, block).mul_(self.scale).add_(start)

    def _drop(self, block: Block, updates: torch.Tensor) -> None:
        assert block.kept is not None, "a rule that draws is given a draw"
        for branch, update in enumerate(updates):
            density = block.parameter(branch, "density", self.density)
            if density < 1.0:
                update.mul_(block.kept(branch, density))
                if self.rescale:
                    update.div_(density)

    def _combined(self, updates: torch.Tensor, block: Block) -> torch.Tensor:
        return mean_update(updates, block.weights)


class DareTies(Dare):
    """As `dare`, merged by TIES' election of signs and disjoint mean; nothing is trimmed."""

    source: ClassVar[str] = (
        "random drop and rescale, then sign election (DARE, arXiv 2311.03099; TIES, arXiv 2306.01708)"
    )

    normalize: bool = Field(True, description="false: the sum of what agrees, not its mean")

    def _combined(self, updates: torch.Tensor, block: Block) -> torch.Tensor:
        return elected(updates, block.weights, normalize=self.normalize)
