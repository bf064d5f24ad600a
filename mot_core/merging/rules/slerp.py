"""Spherical interpolation, tensor by tensor: SLERP of two (Shoemake 1985; WARP, Ramé et al. 2024, arXiv 2406.16768, of
updates), and for more branches the weighted spherical (Karcher) mean, which for two is SLERP.

    Two: sin(w₁Ω)/sin Ω · v¹ + sin(w₂Ω)/sin Ω · v², Ω the angle between v¹ and v².
    More: Σₖ cₖ vᵏ, with Σₖ cₖ vᵏ/‖vᵏ‖ the point of the unit sphere whose squared angles to the vᵏ, weighted, sum least.

Both are combinations of the vᵏ whose coefficients follow from their inner products; so one pass takes those, a second
one merges. Where directions coincide, oppose each other or a vector is zero, weights are used as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mot_core.merging.rules.base import Block, Rule, mean_update, of_updates

if TYPE_CHECKING:
    import torch

_PARALLEL = 1e-12
_TOLERANCE = 1e-14
_MAX_STEPS = 1000

Gram = list[list[float]]


class Slerp(Rule):
    """Along the sphere instead of through it, so that averaging does not shrink."""

    source: ClassVar[str] = "spherical mean (SLERP; WARP, arXiv 2406.16768)"

    of: Literal["updates", "weights"] = Field("updates", description="what is interpolated: θᵏ − θ₀, or θᵏ itself")

    @property
    def needs_start(self) -> bool:
        return self.of == "updates"

    @property
    def surveys(self) -> bool:
        return True

    def scan(self, block: Block, idea: None) -> torch.Tensor:
        vectors = self._vectors(block)
        gram = vectors.new_empty(len(vectors), len(vectors))
        for place, vector in enumerate(vectors):
            gram[place, place:] = gram[place:, place] = vectors[place:].mv(vector)
        return gram

    def settle(self, parts: list[torch.Tensor], idea: None, size: int, weights: Sequence[float]) -> list[float]:
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return spherical_coefficients(total.tolist(), weights)

    def merge(self, block: Block) -> torch.Tensor:
        merged = mean_update(self._vectors(block), block.survey)
        return merged.add_(of_updates(block)[0]) if self.of == "updates" else merged

    def _vectors(self, block: Block) -> torch.Tensor:
        return of_updates(block)[1] if self.of == "updates" else block.branches


def spherical_coefficients(gram: Gram, weights: Sequence[float]) -> list[float]:
    """The cₖ of the spherical mean from the vectors' inner products; the weights where it is not defined."""
    norms = [math.sqrt(row[index]) for index, row in enumerate(gram)]
    if len(norms) == 1 or min(norms) == 0.0:
        return list(weights)
    cosines = [
        [max(-1.0, min(1.0, gram[i][j] / (norms[i] * norms[j]))) for j in range(len(norms))] for i in range(len(norms))
    ]
    if len(norms) == 2:
        return _two(cosines[0][1], weights)
    found = _karcher(cosines, weights)
    return found if found is not None else list(weights)


def _two(cosine: float, weights: Sequence[float]) -> list[float]:
    if 1.0 - abs(cosine) < _PARALLEL:
        return list(weights)
    angle = math.acos(cosine)
    return [math.sin(weight * angle) / math.sin(angle) for weight in weights]


def _karcher(cosines: Gram, weights: Sequence[float]) -> list[float] | None:
    """Coefficients over unit vectors of their weighted mean on the sphere, by gradient steps in the tangent space."""
    mean = _unit(list(weights), cosines)
    if mean is None:
        return None
    for _ in range(_MAX_STEPS):
        heights = [max(-1.0, min(1.0, value)) for value in _times(cosines, mean)]
        if min(heights) < -1.0 + _PARALLEL:
            return None
        stretches = [w * _angle_over_sine(height) for w, height in zip(weights, heights, strict=True)]
        along = sum(stretch * height for stretch, height in zip(stretches, heights, strict=True))
        tangent = [stretch - along * c for stretch, c in zip(stretches, mean, strict=True)]
        length = math.sqrt(max(0.0, _dot(tangent, _times(cosines, tangent))))
        if length < _TOLERANCE:
            break
        step = math.sin(length) / length
        moved = _unit([math.cos(length) * c + step * t for c, t in zip(mean, tangent, strict=True)], cosines)
        if moved is None:
            return None
        mean = moved
    return mean


def _angle_over_sine(cosine: float) -> float:
    return 1.0 if 1.0 - cosine < _PARALLEL else math.acos(cosine) / math.sqrt(1.0 - cosine * cosine)


def _unit(coefficients: list[float], cosines: Gram) -> list[float] | None:
    square = _dot(coefficients, _times(cosines, coefficients))
    return [c / math.sqrt(square) for c in coefficients] if square > _PARALLEL else None


def _times(matrix: Gram, vector: list[float]) -> list[float]:
    return [_dot(row, vector) for row in matrix]


def _dot(first: list[float], second: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))
