"""What a merge did to the branches' updates: drift by layer, agreement between branches, energy kept.

An update is Δᵏ = θᵏ − θ_start. Sums run over all coordinates in float64, tensor by tensor, so nothing but one
tensor of each branch is in memory.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import torch

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def place_of(key: str) -> tuple[str, str]:
    """`(layer, kind)` of a tensor: ('layer 3', 'attention'), ('embedding', 'embedding') …"""
    match = _LAYER.search(key)
    layer = f"layer {match.group(1)}" if match else "outside layers"
    for mark, kind in (
        ("attn", "attention"),
        ("mlp", "mlp"),
        ("norm", "norm"),
        ("embed", "embedding"),
        ("lm_head", "head"),
    ):
        if mark in key:
            return layer, kind
    return layer, "other"


class MergeDiagnostics:
    """Accumulates sums while tensors stream by."""

    def __init__(self, branch_names: list[str]) -> None:
        self.names = branch_names
        self.squares: dict[tuple[str, str, str], float] = {}
        self.start_squares: dict[tuple[str, str], float] = {}
        self.dots: dict[tuple[int, int], float] = {}
        self.same_sign = 0
        self.signed = 0

    def add(self, key: str, start: torch.Tensor, branches: list[torch.Tensor], merged: torch.Tensor) -> None:
        """Account for one tensor (all float64, one shape)."""
        place = place_of(key)
        updates = [branch - start for branch in branches]
        self.start_squares[place] = self.start_squares.get(place, 0.0) + float((start * start).sum())
        for name, update in zip([*self.names, "merged"], [*updates, merged - start], strict=True):
            slot = (name, *place)
            self.squares[slot] = self.squares.get(slot, 0.0) + float((update * update).sum())
        for pair in itertools.combinations(range(len(updates)), 2):
            self.dots[pair] = self.dots.get(pair, 0.0) + float((updates[pair[0]] * updates[pair[1]]).sum())
        signs = torch.stack([update.sign() for update in updates]).sum(0)
        moved = torch.stack([update != 0 for update in updates]).any(0)
        self.same_sign += int((signs.abs() == len(updates)).sum())
        self.signed += int(moved.sum())

    def summary(self) -> dict[str, Any]:
        """`drift`: rows a branch and place; `agreement`: cosine, sign agreement, share of update energy kept."""
        energy = {name: self._total(name) for name in [*self.names, "merged"]}
        cosines = [
            self._cosine(dot, energy[self.names[first]], energy[self.names[second]])
            for (first, second), dot in self.dots.items()
        ]
        mean_energy = sum(energy[name] for name in self.names) / len(self.names)
        return {
            "drift": [
                {
                    "branch": name, "layer": layer, "kind": kind, "drift": math.sqrt(square),
                    "relative_drift": math.sqrt(square / self.start_squares[layer, kind])
                    if self.start_squares[layer, kind] else None,
                }
                for (name, layer, kind), square in sorted(self.squares.items())
            ],
            "agreement": {
                "mean_cosine": sum(cosines) / len(cosines) if cosines else 1.0,
                "min_cosine": min(cosines) if cosines else 1.0,
                "sign_agreement": self.same_sign / self.signed if self.signed else 1.0,
                "energy_kept": energy["merged"] / mean_energy if mean_energy else 1.0,
            },
            "pairwise_cosine": [
                {"a": self.names[first], "b": self.names[second], "cosine": cosine}
                for ((first, second), _), cosine in zip(self.dots.items(), cosines, strict=True)
            ],
        }  # fmt: skip

    def _total(self, name: str) -> float:
        return sum(square for (owner, _, _), square in self.squares.items() if owner == name)

    @staticmethod
    def _cosine(dot: float, first: float, second: float) -> float:
        return dot / math.sqrt(first * second) if first > 0.0 and second > 0.0 else 0.0
