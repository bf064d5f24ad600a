"""The processes that train one branch together, and FSDP2's sharding among them (torch, gloo or NCCL).

Invariant: with one process nothing here changes anything; with several, each holds a part of every tensor, and what
a function returns is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mot_core.errors import TrainingError


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of its branch."""

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        return self.index == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over all processes."""
        if self.count == 1:
            return list(values)
        import torch.distributed as dist

        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return [float(value) for value in summed]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            self.sum([0.0])


def shard(module: Any, layer_classes: Sequence[str], precision: str, ranks: Ranks) -> None:
    """Shard a model in place, a transformer layer a unit. Its gradients are the mean over processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    layers = [part for part in module.modules() if type(part).__name__ in set(layer_classes)]
    if not layers:
        raise TrainingError(f"the student names no layers to shard by ({list(layer_classes)}); use training.devices: 1")
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)


def put_away(module: Any) -> None:
    """Let go of weights that a forward pass without gradients has gathered: a backward pass would have."""
    if hasattr(module, "reshard"):
        module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts; every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds: a view, so writing to it writes to the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part_like(value: torch.Tensor, like: Any) -> torch.Tensor:
    """A whole tensor, parted as another one of its shape is."""
    if not hasattr(like, "device_mesh") or value.shape != like.shape:
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    parted: torch.Tensor = distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return parted
