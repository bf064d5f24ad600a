"""θ ← Σₖ wₖ θᵏ: the paper's rule (method, step 2), with wₖ = 1/K; model soups (Wortsman et al. 2022, arXiv
2203.05482), FedAvg (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mot_core.merging.rules.base import Block, Rule, mean_update

if TYPE_CHECKING:
    import torch


class Mean(Rule):
    """The mean, weighted or not. Needs no start."""

    source: ClassVar[str] = "Σ wₖ θᵏ (model soups, arXiv 2203.05482)"

    @property
    def needs_start(self) -> bool:
        return False

    def merge(self, block: Block) -> torch.Tensor:
        return mean_update(block.branches, block.weights)
