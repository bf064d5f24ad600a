"""An exponential moving average of the merged students (Polyak and Juditsky 1992; as WARP's anchor, arXiv 2406.16768),
with the bias of its start corrected, so that the first round's student is the mean itself.

    aₜ = β (1 − βᵗ⁻¹) / (1 − βᵗ);  eₜ = aₜ eₜ₋₁ + (1 − aₜ) Σₖ wₖ θₜᵏ

eₜ is the round's student. It and t are carried in float32, so that a student in bfloat16 does not stand still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mot_core.merging.rules.base import Block, Rule, mean_update

if TYPE_CHECKING:
    import torch


class Ema(Rule):
    """Each student weighs β of the one after it. Needs no start."""

    source: ClassVar[str] = "moving average over rounds of Σ wₖ θᵏ"
    keeps_state: ClassVar[bool] = True

    decay: float = Field(0.9, ge=0.0, lt=1.0, description="β")

    @property
    def needs_start(self) -> bool:
        return False

    def merge(self, block: Block) -> torch.Tensor:
        merged = mean_update(block.branches, block.weights)
        if block.state is not None:
            count = int(block.state_facts["merges"]) + 1
            kept = self.decay * (1.0 - self.decay ** (count - 1)) / (1.0 - self.decay**count)
            merged.mul_(1.0 - kept).add_(block.state, alpha=kept)
        block.new_state = merged
        return merged
