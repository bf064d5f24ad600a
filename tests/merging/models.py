"""Directories that look like models to a merge, small enough to check by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mot_core.merging.plan import inspect
from mot_core.merging.stage import MergeSettings, merge_models

KEY = "model.layers.0.mlp.up_proj.weight"


def write(directory: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """A model directory: tensors, a config, a tokenizer, a template."""
    directory.mkdir(parents=True)
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model_type": "pico", "hidden_size": 2, **config}))
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    (directory / "chat_template.jinja").write_text("T")
    return directory


def merged(
    root: Path, values: Mapping[str, torch.Tensor], rule: str, weights: list[float], *, out: str = "out",
    start: str | None = "start", **settings: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:  # fmt: skip
    """Merge one-tensor models `values` (name → tensor; `start` is the start); the merged tensors and diagnostics."""
    for name, tensor in values.items():
        if not (root / name).exists():
            write(root / name, {KEY: tensor})
    branches = [inspect(name, root / name) for name in values if name != "start"]
    (root / out).mkdir()
    begin = inspect("start", root / start) if start is not None else None
    found = merge_models(begin, branches, weights, rule, root / out, settings=MergeSettings(**settings))
    return load_all(root / out), found


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in sorted(directory.glob("*.safetensors")) for key, value in load_file(path).items()}


def vector(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)
