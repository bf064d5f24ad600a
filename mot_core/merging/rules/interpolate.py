"""θ ← (1 − η) θ₀ + η merge(θ¹ … θᴷ): interpolation back toward the start, WARP's third step (Ramé et al. 2024, arXiv
2406.16768), of the mean or of the spherical mean of the updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from mot_core.merging.rules.base import Block, Rule, mean_update, of_updates
from mot_core.merging.rules.slerp import Slerp

if TYPE_CHECKING:
    import torch

_SPHERICAL = Slerp(of="updates")


class Interpolate(Rule):
    """η = 1 is the merge itself, η = 0 the start."""

    source: ClassVar[str] = "(1 − η) θ₀ + η merge(θᵏ) (WARP, arXiv 2406.16768)"

    rate: float = Field(ge=0.0, le=1.0, description="η, how far from the start to the merge")
    of: Literal["mean", "slerp"] = Field("mean", description="the merge that is interpolated; WARP: slerp")

    @property
    def surveys(self) -> bool:
        return self.of == "slerp"

    def scan(self, block: Block, idea: None) -> Any:
        return _SPHERICAL.scan(block, idea)

    def settle(self, parts: list[Any], idea: None, size: int, weights: Sequence[float]) -> Any:
        return _SPHERICAL.settle(parts, idea, size, weights)

    def merge(self, block: Block) -> torch.Tensor:
        start, updates = of_updates(block)
        coefficients = block.survey if self.of == "slerp" else block.weights
        return mean_update(updates, coefficients).mul_(self.rate).add_(start)
