"""What a merge did to the branches' updates: drift by layer, agreement between branches, energy kept.

An update is Δᵏ = θᵏ − θ_start. Sums run in float64, run by run of a tensor, and are added up in one order, so that
threads change no digit. Tensors of up to `ALL_VALUES` values are summed whole. Of larger ones a sixteenth is sampled for
what branches have in common (inner products, signs), and under rules that do not read the start (the mean) for norms
too: diagnostics must cost little beside the merge.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_LAYER = re.compile(r"\.layers\.(\d+)\.")
ALL_VALUES = 1 << 18


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


@dataclass(frozen=True)
class Sums:
    """Of one run of a tensor: squares of the start, of each update and of the merge's, and what branches have in
    common."""

    start: float
    squares: list[float]
    merged: float
    common: Common | None = None

    def __add__(self, other: Sums) -> Sums:
        """Of two runs; one without what branches have in common adds nothing to it."""
        both = self.common + other.common if self.common and other.common else self.common or other.common
        squares = [one + two for one, two in zip(self.squares, other.squares, strict=True)]
        return Sums(self.start + other.start, squares, self.merged + other.merged, both)


@dataclass(frozen=True)
class Common:
    """Inner products of the updates (pairs i ≤ j); values whose signs all agree; values that any branch moved. Of
    sampled values, each of which counts `scale` times."""

    products: dict[tuple[int, int], float]
    same_sign: int
    moved: int
    scale: float

    def __add__(self, other: Common) -> Common:
        assert self.scale == other.scale, "values that count differently have no sum"
        products = {pair: product + other.products[pair] for pair, product in self.products.items()}
        return Common(products, self.same_sign + other.same_sign, self.moved + other.moved, self.scale)


def sampled(size: int, number: int, count: int, block: int) -> tuple[int, int, float] | None:
    """Which of a run's `count` values are summed, as `(first, last, how many times each counts)`; None: none of them.

    All of a small tensor's; of a larger one's every other run an eighth, whose place changes from run to run, so that
    no row of a pattern (a head, a rotary pair) is favoured.
    """
    if size <= ALL_VALUES:
        return 0, count, 1.0
    if number % 2:
        return None
    width = min(count, block // 8)
    first = (5 * (number // 2) % 8) * width
    first = first if first + width <= count else 0
    num_runs = -(-size // block)
    of_last = min(block // 8, size - (num_runs - 1) * block) if num_runs % 2 else block // 8
    return first, first + width, size / ((-(-num_runs // 2) - 1) * (block // 8) + of_last)


def squares_of(start: torch.Tensor, updates: torch.Tensor) -> tuple[float, list[float]]:
    """Sums of squares of a run, (N,) and (K, N) float64: of the start, and of each update."""
    return float(start.dot(start)), [float(update.dot(update)) for update in updates]


def common_of(updates: torch.Tensor, scale: float) -> Common:
    """What the updates of a run, (K, N) float64, have in common."""
    products = {}
    for first, update in enumerate(updates):
        for second, product in enumerate(torch.mv(updates[first:], update).tolist(), first):
            products[first, second] = product
    low, high = updates.amin(0).numpy(), updates.amax(0).numpy()
    # numpy counts booleans some ten times as fast as torch.
    same = np.count_nonzero(low > 0) + np.count_nonzero(high < 0)
    return Common(products, int(same), len(low) - int(np.count_nonzero((low == 0) & (high == 0))), scale)


def sums_of(start: torch.Tensor, updates: torch.Tensor) -> Sums:
    """The sums of a run whose values are all taken, (N,) and (K, N) float64, before it is merged."""
    return Sums(*squares_of(start, updates), 0.0, common_of(updates, 1.0))


class MergeDiagnostics:
    """Accumulates sums while tensors stream by."""

    def __init__(self, branch_names: list[str]) -> None:
        self.names = branch_names
        self.squares: dict[tuple[str, str, str], float] = {}
        self.start_squares: dict[tuple[str, str], float] = {}
        indices = range(len(branch_names))
        self.products = dict.fromkeys(itertools.combinations_with_replacement(indices, 2), 0.0)
        self.same_sign = 0.0
        self.moved = 0.0

    def take(self, key: str, sums: Sums) -> None:
        """Account for one run."""
        place = place_of(key)
        self.start_squares[place] = self.start_squares.get(place, 0.0) + sums.start
        for name, square in zip([*self.names, "merged"], [*sums.squares, sums.merged], strict=True):
            slot = (name, *place)
            self.squares[slot] = self.squares.get(slot, 0.0) + square
        if sums.common is not None:
            for pair, product in sums.common.products.items():
                self.products[pair] += sums.common.scale * product
            self.same_sign += sums.common.scale * sums.common.same_sign
            self.moved += sums.common.scale * sums.common.moved

    def summary(self) -> dict[str, Any]:
        """`drift`: rows a branch and place; `agreement`: cosine, sign agreement, share of update energy kept."""
        energy = {name: self._total(name) for name in [*self.names, "merged"]}
        pairs = list(itertools.combinations(range(len(self.names)), 2))
        cosines = [self._cosine(self.products[a, b], self.products[a, a], self.products[b, b]) for a, b in pairs]
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
                "sign_agreement": self.same_sign / self.moved if self.moved else 1.0,
                "energy_kept": energy["merged"] / mean_energy if mean_energy else 1.0,
            },
            "pairwise_cosine": [
                {"a": self.names[first], "b": self.names[second], "cosine": cosine}
                for (first, second), cosine in zip(pairs, cosines, strict=True)
            ],
        }  # fmt: skip

    def _total(self, name: str) -> float:
        return sum(square for (owner, _, _), square in self.squares.items() if owner == name)

    @staticmethod
    def _cosine(dot: float, first: float, second: float) -> float:
        return dot / math.sqrt(first * second) if first > 0.0 and second > 0.0 else 0.0
