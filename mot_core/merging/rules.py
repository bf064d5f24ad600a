"""Merge rules by name. A rule maps the branches' tensors and the round's start to the merged tensor, in float64.

To bring your own, give `merge.rule: package.module:function` with the signature of `Rule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from mot_core.merging import RULES
from mot_core.steps import load_object


class Rule(Protocol):
    """One tensor of the merged student. All tensors are float64 and of one shape."""

    def __call__(
        self, start: torch.Tensor, branches: Sequence[torch.Tensor], weights: Sequence[float]
    ) -> torch.Tensor: ...


def weighted_mean(start: torch.Tensor, branches: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Σₖ wₖ θᵏ (paper, method, step 2; model soups, Wortsman et al. 2022, arXiv 2203.05482)."""
    merged = torch.zeros_like(start)
    for branch, weight in zip(branches, weights, strict=True):
        merged.add_(branch, alpha=weight)
    return merged


def rule_named(name: str) -> Rule:
    """A rule by registered name or import path."""
    rule: Rule = load_object(RULES.get(name, name), f"merge rule {name!r}")
    return rule
