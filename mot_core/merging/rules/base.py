"""What a rule is given and what it gives back: one run of one tensor, in float64.

Invariant: a rule is a function of its block, of what its own survey found over the whole tensor, and of nothing
else; so runs may be computed in any order, by any number of threads, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch


@dataclass
class Block:
    """Values `[offset, offset + N)` of a tensor. `start` and `updates` are None where the merge has no start."""

    key: str
    shape: tuple[int, ...]
    start: torch.Tensor | None  # (N,)
    branches: torch.Tensor  # (K, N)
    updates: torch.Tensor | None  # (K, N): branches − start
    weights: Sequence[float]
    own: Sequence[dict[str, float]] = ()
    """A branch's own values of the rule's parameters, where a recipe gives them."""
    survey: Any = None
    state: torch.Tensor | None = None  # (N,), carried from the previous merge
    state_facts: dict[str, str] = field(default_factory=dict)
    new_state: torch.Tensor | None = None
    kept: Callable[[int, float], torch.Tensor] | None = None
    """`kept(k, density)`: which values of branch k a random draw keeps, (N,) bool."""

    def parameter(self, branch: int, name: str, shared: float) -> float:
        """A branch's own value of a parameter, else the shared one."""
        return self.own[branch].get(name, shared) if self.own else shared


class Rule(BaseModel):
    """A merge rule; its fields are its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: ClassVar[str] = ""
    """The rule's formula and citation, in a line, for the model card."""
    averages: ClassVar[bool] = True
    """Whether weights must sum to one."""
    negative_weights: ClassVar[bool] = False
    whole_tensors: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    """Whether a seed changes the result."""
    sample_size: ClassVar[int] = 0
    """Values that `prepare` wants to see, evenly spaced over the tensor."""

    @property
    def needs_start(self) -> bool:
        """Whether the rule works on updates, and so on what the branches began at."""
        return True

    @property
    def surveys(self) -> bool:
        """Whether the rule needs statistics of the whole tensor before it merges."""
        return False

    def prepare(self, sample: Block, size: int, attempt: int) -> Any:
        """An idea of the statistics, from a sample of a tensor of `size` values; attempts count from 0."""
        return None

    def scan(self, block: Block, idea: Any) -> Any:
        """A block's part of the statistics; with `idea` None, a part that settles them for certain."""
        raise NotImplementedError

    def settle(self, parts: list[Any], idea: Any, size: int, weights: Sequence[float]) -> Any:
        """The statistics of the whole tensor; None if the idea was wrong, to scan again with another."""
        raise NotImplementedError

    def merge(self, block: Block) -> torch.Tensor:
        """The merged values, (N,) float64. `block` is scratch: its tensors may be written to, `start` apart."""
        raise NotImplementedError


def mean_update(updates: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Σₖ wₖ Δᵏ, in the order of the branches. It takes the first row's place: memory of its own would be mapped anew for
    every run."""
    total = updates[0].mul_(weights[0])
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        total.add_(update, alpha=weight)
    return total


def of_updates(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """`(start, updates)` of a rule over updates; the plan has seen to it that there is a start."""
    assert block.start is not None and block.updates is not None, f"{block.key}: a rule over updates without a start"
    return block.start, block.updates
