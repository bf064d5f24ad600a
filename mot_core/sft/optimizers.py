"""AdamW, its rate at each step, and its moments as they pass from one round to the next.

Invariant: moments travel as safetensors by parameter name, whole, whatever the devices that made them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mot_core.errors import ModelError, TrainingError
from mot_core.sft.ranks import Ranks, part_like, whole
from mot_core.spec import Training

STATE_FILE = "optimizer/state.safetensors"


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """The rate of a step (counted from 0) of a path of `total_steps`: linear warm-up, then the schedule."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[schedule]


def optimizer_for(parameters: Sequence[torch.nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    """AdamW over the parameters that train."""
    betas = (settings.beta1, settings.beta2)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=betas, weight_decay=settings.weight_decay, fused=True
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ModelError(
            f"training.optimizer 'adamw8bit' needs bitsandbytes: {error}; install it, or use adamw"
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(
        parameters, lr=settings.learning_rate, betas=betas, weight_decay=settings.weight_decay
    )
    return made


def write_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, directory: Path, ranks: Ranks) -> None:
    """The moments for the next round; every rank must call this, the first one writes."""
    entries: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = whole(value) if isinstance(value, torch.Tensor) else torch.tensor(float(value))
            if ranks.first:
                entries[f"{name}/{key}"] = tensor.detach().cpu().clone()
    if ranks.first:
        path = directory / STATE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(entries, path)
    ranks.wait()


def start_from(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, directories: Sequence[Path], weights: Sequence[float]
) -> None:
    """Begin with the weighted mean of other branches' moments (of one branch's: its own).

    Raises:
        TrainingError: moments that are not of these parameters.
    """
    parameters = dict(model.named_parameters())
    paths = [directory / STATE_FILE for directory in directories]
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        names = set(files[0].keys())
        for path, file in zip(paths, files, strict=True):
            keys = set(file.keys())
            unknown = {key.rpartition("/")[0] for key in keys} - set(parameters)
            if keys != names or unknown:
                raise TrainingError(f"{path}: its moments are not of this student's parameters: {sorted(unknown)[:3]}")
        for key in sorted(names):
            name, _, entry = key.rpartition("/")
            mean = _weighted([file.get_tensor(key) for file in files], weights)
            # bitsandbytes counts its steps in an int.
            scalar = mean.ndim == 0 and type(optimizer).__module__.startswith("bitsandbytes")
            optimizer.state[parameters[name]][entry] = int(mean) if scalar else part_like(mean, parameters[name])


def _weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    if len(tensors) == 1:
        return tensors[0]
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.to(torch.float64)
    return total.to(tensors[0].dtype)


def held_state(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """One parameter's optimizer state, its tensors and its plain numbers apart."""
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
