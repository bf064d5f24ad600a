"""An outer optimizer on the averaged update, as DiLoCo's (Douillard et al. 2023, arXiv 2311.08105): SGD with momentum,
plain or Nesterov. With rate 1 and no momentum it is the paper's mean.

    Δ = Σₖ wₖ (θᵏ − θ₀);  v ← μ v + Δ;  θ ← θ₀ + η (Δ + μ v) with Nesterov, θ₀ + η v without

v is carried from round to round in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mot_core.merging.rules.base import Block, Rule, mean_update, of_updates

if TYPE_CHECKING:
    import torch


class Outer(Rule):
    """−Δ is the outer gradient; torch.optim.SGD is the oracle."""

    source: ClassVar[str] = "outer SGD with momentum on the averaged update (DiLoCo, arXiv 2311.08105)"
    keeps_state: ClassVar[bool] = True

    learning_rate: float = Field(0.7, gt=0.0, description="η (DiLoCo: 0.7)")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="μ (DiLoCo: 0.9)")
    nesterov: bool = Field(True, description="(DiLoCo: true)")

    def merge(self, block: Block) -> torch.Tensor:
        start, updates = of_updates(block)
        update = mean_update(updates, block.weights)
        velocity = update.clone() if block.state is None else block.state.mul_(self.momentum).add_(update)
        block.new_state = velocity
        step = update.add_(velocity, alpha=self.momentum) if self.nesterov else velocity
        return (step * self.learning_rate).add_(start)
