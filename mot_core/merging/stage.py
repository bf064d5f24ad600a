"""The merge stage: θₜ ← Σₖ wₖ θₜᵏ (paper, method, step 2), one tensor at a time, summed in float64, rounded once.

Branches are summed in the order of their identities, so naming or listing them otherwise changes nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mot_core.artifacts import MANIFEST
from mot_core.errors import MergeError
from mot_core.merging.diagnostics import MergeDiagnostics
from mot_core.merging.plan import INDEX, WEIGHTS, BranchFiles, inspect, validate
from mot_core.merging.rules import rule_named
from mot_core.models import local_copy
from mot_core.runner import StepContext

DIAGNOSTICS = "diagnostics.json"


def merge_branches(context: StepContext) -> dict[str, Any]:
    """Runner of `merge`: the next student and `diagnostics.json`."""
    start = inspect("start", local_copy(context.model_dir("student"), context.step.locators.get("student_revision")))
    branches = [inspect(role.removeprefix("branch/"), path) for role, path in context.parents("branch/")]
    diagnostics = merge_models(
        start, branches, context.spec["weights"], context.spec["rule"], context.work_dir,
        progress=lambda done, total: context.progress(done, total, "tensors"),
    )  # fmt: skip
    (context.work_dir / DIAGNOSTICS).write_text(json.dumps(diagnostics, indent=1))
    return {"num_branches": len(branches), **diagnostics["agreement"]}


def merge_models(
    start: BranchFiles, branches: list[BranchFiles], weights: list[float], rule_name: str, out_dir: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Merge branches of one start into `out_dir`; the diagnostics.

    Raises:
        MergeError: branches that do not match, weights that do not sum to one, or a tensor that is not finite.
    """
    if abs(sum(weights) - 1.0) > 1e-6 or len(weights) != len(branches):
        raise MergeError(f"{len(branches)} branches with weights {weights}: expected one each, summing to 1")
    validate(start, branches)
    rule = rule_named(rule_name)
    diagnostics = MergeDiagnostics([branch.name for branch in branches])
    merged: dict[str, torch.Tensor] = {}
    with _Tensors([start, *branches]) as tensors:
        for done, key in enumerate(sorted(start.shapes), 1):
            stored = [tensors.read(index, key) for index in range(1 + len(branches))]
            for model, tensor in zip([start, *branches], stored, strict=True):
                if not bool(torch.isfinite(tensor).all()):
                    raise MergeError(
                        f"branch {model.name!r}: {key} holds NaN or infinity; expected finite weights; nothing was "
                        "merged: look at that branch's training log, lower its learning rate"
                    )
            values = [tensor.to(torch.float64) for tensor in stored]
            result = rule(values[0], values[1:], weights)
            diagnostics.add(key, values[0], values[1:], result)
            merged[key] = result.to(stored[1].dtype).contiguous()
            progress(done, len(start.shapes))
    save_file(merged, out_dir / WEIGHTS, metadata={"format": "pt"})
    _carry_over(branches[0].directory, out_dir)
    return diagnostics.summary()


class _Tensors:
    """Open safetensors files of several models, read one tensor at a time."""

    def __init__(self, models: list[BranchFiles]) -> None:
        self.models = models
        self.open: dict[Path, Any] = {}

    def __enter__(self) -> _Tensors:
        for path in {path for model in self.models for path in model.files.values()}:
            self.open[path] = safe_open(path, framework="pt").__enter__()
        return self

    def read(self, model_index: int, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self.open[self.models[model_index].files[key]].get_tensor(key)
        return tensor

    def __exit__(self, *error: Any) -> None:
        for file in self.open.values():
            file.__exit__(*error)


def _carry_over(source: Path, target: Path) -> None:
    """Everything of a model that is not weights: config, generation config, tokenizer, template."""
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix in (".json", ".jinja", ".txt", ".model")
            and path.name not in (INDEX, MANIFEST)
        ):
            shutil.copyfile(path, target / path.name)
