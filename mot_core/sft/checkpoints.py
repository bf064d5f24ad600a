"""Checkpoints inside a branch: exact resume without pickles.

A checkpoint is a directory of safetensors and JSON, written whole under another name and then renamed, so that a
kill leaves the last complete one. Each process of a branch writes the part that it holds. Only what trains is in it.
Invariant: training resumed from it gives the same weights, bit for bit; a checkpoint made under another layout or
number of processes would not, and is left unused. Random state needs no place: it is seeded anew each step.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mot_core.files import sync_directory, sync_file
from mot_core.model_files import check_model_files
from mot_core.sft.optimizers import held_state
from mot_core.sft.ranks import Ranks, own_part

log = logging.getLogger("mot.sft")


class Checkpoints:
    """The newest checkpoint of one branch, in its scratch directory, and the best weights so far where they are kept."""

    def __init__(
        self, work_dir: Path, every_seconds: float, ranks: Ranks | None = None, layout: Mapping[str, Any] | None = None
    ) -> None:
        self.directory = work_dir / ".checkpoint"
        self.previous = work_dir / ".checkpoint-previous"
        self.best = work_dir / ".best"
        self.every_seconds = every_seconds
        self.ranks = ranks or Ranks()
        self.layout = dict(layout or {})
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, log: list[Any]) -> None:
        """Write weights, optimizer state and the log after `step` optimizer steps."""
        fresh = self._fresh(self.directory)
        weights, names = _trained(model)
        save_file(weights, fresh / f"model-{self.ranks.index}.safetensors")
        moments: dict[str, torch.Tensor] = {}
        numbers: dict[str, int] = {}
        for parameter, state in optimizer.state.items():
            tensors, plain = held_state(state)
            # Some optimizers share a tensor between parameters, which a safetensors file cannot.
            moments.update({f"{names[parameter]}/{key}": own_part(value).clone() for key, value in tensors.items()})
            numbers.update({f"{names[parameter]}/{key}": value for key, value in plain.items()})
        save_file(moments, fresh / f"optimizer-{self.ranks.index}.safetensors")
        if self.ranks.first:
            document = {
                "step": step, "log": log, "numbers": numbers, "layout": self.layout, "processes": self.ranks.count,
            }  # fmt: skip
            (fresh / "state.json").write_text(json.dumps(document))
        self._publish(fresh, self.directory, self.previous)
        self._last = time.monotonic()

    def load(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[Any]]:
        """Restore the newest checkpoint in place; `(steps done, log)`, or `(0, [])` without one."""
        directory = self.directory if self.directory.exists() else self.previous
        if not directory.exists():
            return 0, []
        check_model_files(directory, "checkpoint")
        state = json.loads((directory / "state.json").read_text())
        if (state["layout"], state["processes"]) != (self.layout, self.ranks.count):
            log.warning("the checkpoint after step %d is of another layout: the branch starts over", state["step"])
            return 0, []
        parameters = dict(model.named_parameters())
        _restore(parameters, directory / f"model-{self.ranks.index}.safetensors")
        for key, value in load_file(directory / f"optimizer-{self.ranks.index}.safetensors").items():
            name, _, entry = key.rpartition("/")
            optimizer.state[parameters[name]][entry] = _as_state(value, parameters[name])
        for key, number in state["numbers"].items():
            name, _, entry = key.rpartition("/")
            optimizer.state[parameters[name]][entry] = number
        return state["step"], state["log"]

    def keep_best(self, model: torch.nn.Module) -> None:
        """Remember the weights as they are now."""
        fresh = self._fresh(self.best)
        save_file(_trained(model)[0], fresh / f"model-{self.ranks.index}.safetensors")
        self._publish(fresh, self.best, self.best.with_name(".best-previous"))

    def restore_best(self, model: torch.nn.Module) -> None:
        """Put back the weights last remembered.

        A newer `.best` than the checkpoint that was resumed from is written again before this: training repeats itself.
        """
        _restore(dict(model.named_parameters()), self.best / f"model-{self.ranks.index}.safetensors")

    def _fresh(self, directory: Path) -> Path:
        fresh = directory.with_name(f"{directory.name}-new")
        if self.ranks.first:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        self.ranks.wait()
        return fresh

    def _publish(self, fresh: Path, directory: Path, previous: Path) -> None:
        for path in fresh.glob(f"*-{self.ranks.index}.safetensors"):
            sync_file(path)
        self.ranks.wait()
        if self.ranks.first:
            for path in fresh.glob("*.json"):
                sync_file(path)
            # Each rename is whole, and the old one goes last: at every moment one complete directory is named.
            shutil.rmtree(previous, ignore_errors=True)
            if directory.exists():
                directory.replace(previous)
            fresh.replace(directory)
            sync_directory(directory.parent)
            shutil.rmtree(previous, ignore_errors=True)
        self.ranks.wait()


def _trained(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[torch.Tensor, str]]:
    """The parts held here of the parameters that train, by name, and their names."""
    names: dict[torch.Tensor, str] = {
        parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    return {name: own_part(parameter.detach()) for parameter, name in names.items()}, names


def _restore(parameters: dict[str, torch.nn.Parameter], path: Path) -> None:
    with torch.no_grad():
        for name, value in load_file(path).items():
            own_part(parameters[name]).copy_(value)


def _as_state(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A part read from a checkpoint, as the optimizer holds it: sharded as its parameter, unless it is a step count."""
    value = value.to(parameter.device)
    if value.ndim == 0 or not hasattr(parameter, "device_mesh"):
        return value
    held = torch.zeros_like(parameter, dtype=value.dtype)
    own_part(held).copy_(value)
    return held.detach()
