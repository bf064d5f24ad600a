"""Effective rank of updates, sampled: how many directions a branch, or the merge, really moved in.

exp of the entropy of the normalised singular values (Roy and Vetterli 2007), of up to `ROWS` evenly spaced rows of up
to `MATRICES` evenly spaced matrices inside the layers. So its largest value is `ROWS`; it compares branches with their
merge, and is no property of whole matrices.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from mot_core.merging.diagnostics import place_of
from mot_core.merging.plan import BranchFiles
from mot_core.merging.tensors import FLOATS, MappedFiles

ROWS, MATRICES = 128, 8


def effective_ranks(
    start: BranchFiles, branches: list[BranchFiles], merged: BranchFiles, threads: int
) -> list[dict[str, Any]]:
    """A row a model and sampled matrix; the merge is called 'merged'. Each thread takes whole matrices."""
    keys = [
        key for key, entry in sorted(start.entries.items())
        if len(entry.shape) == 2 and entry.dtype in FLOATS and place_of(key)[0] != "outside layers" and min(entry.shape) > 1
    ]  # fmt: skip
    chosen = keys if len(keys) <= MATRICES else [keys[n * len(keys) // MATRICES] for n in range(MATRICES)]
    files = MappedFiles()
    models = [*((branch.name, branch) for branch in branches), ("merged", merged)]

    def of_matrix(key: str) -> list[dict[str, Any]]:
        height, width = start.entries[key].shape
        count = min(ROWS, height)
        rows = [n * height // count for n in range(count)]
        base = _rows(start, files, key, rows, width)
        layer, kind = place_of(key)
        ranks = [(name, effective_rank(_rows(model, files, key, rows, width) - base)) for name, model in models]
        return [
            {"branch": name, "layer": layer, "kind": kind, "key": key, "effective_rank": rank, "num_rows": count}
            for name, rank in ranks
        ]

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return [row for rows in pool.map(of_matrix, chosen) for row in rows]


def effective_rank(update_RC: torch.Tensor) -> float:
    """exp(−Σ pᵢ log pᵢ) over pᵢ = σᵢ / Σ σ; 0 for an update that is nowhere."""
    squares = torch.linalg.eigvalsh(update_RC @ update_RC.T).clamp_min(0.0)
    # What an eigenvalue's rounding leaves of a zero is no direction.
    singular = squares[squares > 1e-12 * float(squares.max())].sqrt() if float(squares.max()) > 0.0 else squares[:0]
    if len(singular) == 0:
        return 0.0
    shares = singular / singular.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def _rows(model: BranchFiles, files: MappedFiles, key: str, rows: list[int], width: int) -> torch.Tensor:
    values = torch.empty(len(rows), width, dtype=torch.float64)
    for place, row in enumerate(rows):
        model.load(files, key, row * width, values[place])
    return values
