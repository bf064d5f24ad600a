"""A rule of your own, by import path: a function of whole tensors,

    rule(start, branches, weights, **parameters) -> torch.Tensor

all float64 and of one shape. It needs whole tensors in float64, twice what a registered rule is bounded by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from mot_core.errors import MergeError
from mot_core.merging.rules.base import Block, Rule
from mot_core.steps import load_object

if TYPE_CHECKING:
    import torch


class Custom(Rule):
    """Parameters are passed to the function as they are."""

    source: ClassVar[str] = "a rule of one's own"
    whole_tensors: ClassVar[bool] = True

    import_path: str
    arguments: dict[str, Any] = Field({}, description="passed to the function by name")

    def merge(self, block: Block) -> torch.Tensor:
        assert block.start is not None, f"{block.key}: a rule of one's own without a start"
        function: Callable[..., torch.Tensor] = load_object(self.import_path, f"merge rule {self.import_path!r}")
        branches = [branch.reshape(block.shape) for branch in block.branches]
        merged = function(block.start.clone().reshape(block.shape), branches, list(block.weights), **self.arguments)
        if tuple(merged.shape) != block.shape:
            raise MergeError(
                f"merge rule {self.import_path!r}: {block.key} came back as {tuple(merged.shape)}, expected {block.shape}"
            )
        return merged.reshape(-1).to(block.branches.dtype)
