"""Checkpoints inside a branch: exact resume without pickles.

A checkpoint is a directory of safetensors and JSON, written whole under another name and then renamed, so that a
kill leaves the last complete one. Invariant: training resumed from it gives the same weights, bit for bit.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mot_core.artifacts import sync_directory, sync_file


class Checkpoints:
    """The newest checkpoint of one branch, in its scratch directory."""

    def __init__(self, work_dir: Path, every_seconds: float) -> None:
        self.directory = work_dir / ".checkpoint"
        self.previous = work_dir / ".checkpoint-previous"
        self.every_seconds = every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, log: list[Any]) -> None:
        """Write weights, optimizer moments and the log after `step` optimizer steps."""
        fresh = self.directory.with_name(".checkpoint-new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        save_file({name: parameter.detach() for parameter, name in names.items()}, fresh / "model.safetensors")
        moments: dict[str, torch.Tensor] = {}
        for parameter, state in optimizer.state.items():
            moments.update({f"{names[parameter]}/{key}": value for key, value in state.items()})
        save_file(moments, fresh / "optimizer.safetensors")
        (fresh / "state.json").write_text(json.dumps({"step": step, "log": log}))
        for path in fresh.iterdir():
            sync_file(path)
        # Each rename is whole, and the old checkpoint goes last: at every moment one complete checkpoint is named.
        shutil.rmtree(self.previous, ignore_errors=True)
        if self.directory.exists():
            self.directory.replace(self.previous)
        fresh.replace(self.directory)
        sync_directory(self.directory.parent)
        shutil.rmtree(self.previous, ignore_errors=True)
        self._last = time.monotonic()

    def load(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[Any]]:
        """Restore the newest checkpoint in place; `(steps done, log)`, or `(0, [])` without one."""
        directory = self.directory if self.directory.exists() else self.previous
        if not directory.exists():
            return 0, []
        state = json.loads((directory / "state.json").read_text())
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in load_file(directory / "model.safetensors").items():
                parameters[name].copy_(value)
        for key, value in load_file(directory / "optimizer.safetensors").items():
            name, _, entry = key.rpartition("/")
            optimizer.state[parameters[name]][entry] = value
        return state["step"], state["log"]
