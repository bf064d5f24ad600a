"""Directions in weight space: towards other students, and random ones scaled to a model's weights.

Filter normalisation (Li et al. 2018, arXiv 1712.09913, section 4): a Gaussian direction d is scaled filter by filter,

    d_ij ← d_ij ‖θ_ij‖ / ‖d_ij‖,

where θ_ij are the weights of tensor i at index j of its first dimension (a row of a linear layer, the vector of a token).
`layer` scales whole tensors instead. Tensors of one dimension (norms, biases) are not moved, as in
the authors' code with `biasbn`.
Invariant: the Gaussian draw belongs to seed and tensor alone, so students of one shape meet the same draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mot_core.identity import derive_seed
from mot_core.merging.barrier import Losses, Weights
from mot_core.merging.plan import BranchFiles
from mot_core.merging.tensors import MappedFiles


@dataclass(frozen=True)
class RandomWeights:
    """A direction in memory: values by key, in fp32; keys that it leaves out are zero."""

    values: dict[str, torch.Tensor]

    def load(self, files: MappedFiles, key: str, offset: int, out: torch.Tensor) -> torch.Tensor:
        """As `BranchFiles.load`."""
        if key not in self.values:
            return out.zero_()
        return out.copy_(self.values[key].flatten()[offset : offset + len(out)])


def random_direction(losses: Losses, centre: BranchFiles, seed: int, normalize: str) -> RandomWeights:
    """A Gaussian direction with the norms of the centre's filters, or of its tensors with `layer`."""
    values = {}
    for key, entry in losses.entries_of(centre):
        if len(entry.shape) < 2:
            continue
        weights = centre.load(losses.files, key, 0, torch.empty(entry.size, dtype=torch.float64))
        generator = torch.Generator().manual_seed(derive_seed("direction", seed, key))
        drawn = torch.randn(entry.size, generator=generator, dtype=torch.float32).double()
        rows = entry.shape[0] if normalize == "filter" else 1
        weights, drawn = weights.reshape(rows, -1), drawn.reshape(rows, -1)
        scaled = drawn * (weights.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True))
        values[key] = scaled.reshape(entry.shape).float()
    return RandomWeights(values)


def weight_norms(losses: Losses, centre: BranchFiles) -> tuple[float, float]:
    """`(norm of all weights, norm of those that random directions reach)`."""
    every, reached = 0.0, 0.0
    for key, entry in losses.entries_of(centre):
        weights = centre.load(losses.files, key, 0, torch.empty(entry.size, dtype=torch.float64))
        square = float(weights @ weights)
        every += square
        reached += square if len(entry.shape) >= 2 else 0.0
    return every**0.5, reached**0.5


def gram_matrix(losses: Losses, centre: BranchFiles, directions: Sequence[Weights]) -> torch.Tensor:
    """Inner products of directions, (D, D) float64; a student counts as its difference from the centre."""
    gram_DD = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for key, entry in losses.entries_of(centre):
        start = centre.load(losses.files, key, 0, torch.empty(entry.size, dtype=torch.float64))
        moves_DN = torch.empty(len(directions), entry.size, dtype=torch.float64)
        for direction, move_N in zip(directions, moves_DN, strict=True):
            direction.load(losses.files, key, 0, move_N)
            if isinstance(direction, BranchFiles):
                move_N -= start
        gram_DD += moves_DN @ moves_DN.T
    return gram_DD


def place_on_plane(gram_DD: torch.Tensor, x: int, y: int, point: int) -> tuple[float, float, float] | None:
    """`(x, y, share of its length off the plane)` of the end of a direction; None where x and y are parallel."""
    within = gram_DD[[x, y]][:, [x, y]]
    if float(torch.linalg.det(within)) <= 1e-9 * float(within[0, 0] * within[1, 1]):
        return None
    beside = gram_DD[[x, y], point]
    found = torch.linalg.solve(within, beside)
    rest = max(0.0, float(gram_DD[point, point] - found @ beside))
    length = float(gram_DD[point, point])
    return float(found[0]), float(found[1]), (rest / length) ** 0.5 if length > 0.0 else 0.0
