"""θ ← θ₀ + λ Σₖ wₖ (θᵏ − θ₀): task arithmetic (Ilharco et al. 2023, arXiv 2212.04089)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mot_core.merging.rules.base import Block, Rule, mean_update, of_updates

if TYPE_CHECKING:
    import torch


class TaskArithmetic(Rule):
    """Weights are free: they need not sum to one, and a negative one takes a branch's update away."""

    source: ClassVar[str] = "θ₀ + λ Σ wₖ (θᵏ − θ₀) (task arithmetic, arXiv 2212.04089)"
    averages: ClassVar[bool] = False
    negative_weights: ClassVar[bool] = True

    scale: float = Field(1.0, description="λ")

    def merge(self, block: Block) -> torch.Tensor:
        start, updates = of_updates(block)
        return mean_update(updates, block.weights).mul_(self.scale).add_(start)
