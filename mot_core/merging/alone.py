"""`mot merge`: any checkpoints merged by a recipe, by itself.

The output appears whole or not at all: it is written beside its place and renamed. Weights are not synced; the record
(`merge.json`) is.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.errors import MergeError
from mot_core.files import whole_directory, write_atomically
from mot_core.merging.apply import Share
from mot_core.merging.card import CARD, Lineage, card_text
from mot_core.merging.mergekit import ByTensor, Resolved
from mot_core.merging.plan import BranchFiles, inspect, make_plan
from mot_core.merging.recipe import RECORD, Recipe
from mot_core.merging.rules import rule_named
from mot_core.merging.stage import MergeSettings, check_weights, merge_models
from mot_core.merging.tensors import MappedFiles, read_header
from mot_core.merging.tokenizers import tokenizer_warnings
from mot_core.model_files import check_model_files
from mot_core.provenance import package_versions
from mot_core.spec import local_directory

_TOKENIZER_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece")


@dataclass(frozen=True)
class Merged:
    """What was written, and what deserves attention."""

    directory: Path
    num_tensors: int
    num_bytes: int
    seconds: float
    diagnostics: dict[str, Any]
    warnings: list[str]


def merge(
    recipe: Recipe, out_dir: Path, by_tensor: ByTensor | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None, threads: int | None = None,
) -> Merged:  # fmt: skip
    """Merge a recipe's checkpoints into a new directory.

    Raises:
        MergeError: models that do not match, or a directory that holds something already.
        ModelError: a model that is neither in the hub's local cache nor to be had from the hub.
    """
    started = time.monotonic()
    out_dir = out_dir.expanduser().absolute()
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise MergeError(f"{out_dir} exists and is not empty; expected a new or an empty directory")
    start = inspect("base", _directory(recipe.base, recipe.base_revision)) if recipe.base is not None else None
    branches = [inspect(one.name, _directory(one.model, one.revision)) for one in recipe.branches]
    with whole_directory(out_dir, sync=False) as unfinished:
        warnings, diagnostics = _write(recipe, by_tensor, start, branches, unfinished, progress, threads)
    files = sorted(out_dir.glob("*.safetensors"))
    return Merged(
        out_dir, sum(len(read_header(path, "merged")[0]) for path in files), sum(path.stat().st_size for path in files),
        time.monotonic() - started, diagnostics, warnings,
    )  # fmt: skip


def _write(
    recipe: Recipe, by_tensor: ByTensor | None, start: BranchFiles | None, branches: list[BranchFiles], out: Path,
    progress: Callable[[int, int], None], threads: int | None,
) -> tuple[list[str], dict[str, Any]]:  # fmt: skip
    warnings: list[str] = []
    shown = by_tensor.of("") if by_tensor is not None else Resolved(dict(recipe.parameters), recipe.weights, [])
    if recipe.lora == "concatenate":
        diagnostics = _concatenate(recipe, start, branches, out, warnings)
    else:
        settings = MergeSettings(
            shown.parameters, recipe.seed, _previous(recipe), strict=False, dtype=recipe.dtype,
            any_tokenizer=recipe.tokenizer is not None, max_shard_bytes=int(recipe.max_shard_gb * 1e9),
            threads=threads or len(os.sched_getaffinity(0)), warn=warnings.append,
            parameters_of=_parameters_of(by_tensor) if by_tensor is not None else None,
        )  # fmt: skip
        diagnostics = merge_models(start, branches, shown.weights, recipe.rule, out, progress, settings)
        _finish_config(recipe, start, branches, out)
        warnings += tokenizer_warnings(out, _embedding_rows(out))
    _record(recipe, by_tensor, shown, diagnostics, warnings, out)
    return warnings, diagnostics


def _parameters_of(by_tensor: ByTensor) -> Callable[[str], tuple[Mapping[str, Any], list[Share]]]:
    def parameters_of(key: str) -> tuple[Mapping[str, Any], list[Share]]:
        found = by_tensor.of(key)
        return found.parameters, [Share(w, own) for w, own in zip(found.weights, found.own, strict=True)]

    return parameters_of


def _concatenate(
    recipe: Recipe, start: BranchFiles | None, branches: list[BranchFiles], out: Path, warnings: list[str]
) -> dict[str, Any]:
    from mot_core.merging.lora import concatenate, read_adapter

    whole = [branch.name for branch in branches if not branch.is_adapter]
    if whole or recipe.rule not in ("mean", "weighted_mean", "task_arithmetic"):
        raise MergeError(
            f"lora: concatenate joins adapters by a weighted sum; got rule {recipe.rule!r}"
            + (f" and whole models {whole}" if whole else "") + "; use lora: full"
        )  # fmt: skip
    rule = rule_named(recipe.rule, recipe.parameters)
    check_weights(rule, recipe.weights, len(branches), as_given=False)
    scale = float(rule.model_dump().get("scale", 1.0))
    if start is not None:
        warnings += make_plan(start, branches, strict=False, any_tokenizer=recipe.tokenizer is not None).warnings
    adapters = [(branch.name, read_adapter(branch.name, branch.directory)) for branch in branches]
    rank = concatenate(adapters, [scale * weight for weight in recipe.weights], out, MappedFiles())
    return {"rank": rank}


def _directory(model: str, revision: str | None) -> Path:
    """Where a model lies: its directory, or the hub's copy of it (adapters too)."""
    found = local_directory(model)
    if found is not None:
        check_model_files(found, f"model {model!r}")
        return found
    if model.count("/") != 1 or model.startswith((".", "~", "/")):
        raise MergeError(f"model {model!r} is no directory here, and no hub id (owner/name)")
    from mot_core.models import local_copy

    return local_copy(model, revision)


def _previous(recipe: Recipe) -> Path | None:
    if recipe.previous is None:
        return None
    previous = Path(recipe.previous).expanduser()
    if previous.is_dir():
        check_model_files(previous, f"previous {recipe.previous!r}")
    return previous


def _finish_config(recipe: Recipe, start: BranchFiles | None, branches: Sequence[BranchFiles], out: Path) -> None:
    """The type of the weights in the config, and the tokenizer that was asked for."""
    path = out / "config.json"
    if recipe.dtype is not None and path.is_file():
        config = json.loads(path.read_text())
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = recipe.dtype
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if recipe.tokenizer is not None:
        models = {"base": start, **{branch.name: branch for branch in branches}}
        chosen = models[recipe.tokenizer]
        assert chosen is not None, "the recipe has been checked for its base"
        for old in out.iterdir():
            if old.name.startswith(_TOKENIZER_FILES):
                old.unlink()
        for new in chosen.directory.iterdir():
            if new.is_file() and new.name.startswith(_TOKENIZER_FILES):
                shutil.copyfile(new, out / new.name)


def _embedding_rows(out: Path) -> int | None:
    shapes = inspect("merged", out).shapes
    return next((shape[0] for key, shape in shapes.items() if key.endswith("embed_tokens.weight")), None)


def _record(
    recipe: Recipe, by_tensor: ByTensor | None, shown: Resolved, diagnostics: Mapping[str, Any],
    warnings: Sequence[str], out: Path,
) -> None:  # fmt: skip
    rule = rule_named(recipe.rule, shown.parameters)
    branches = [
        Lineage(one.name, _origin(one.model), weight)
        for one, weight in zip(recipe.branches, shown.weights, strict=True)
    ]
    start = Lineage("base", _origin(recipe.base)) if recipe.base is not None else None
    facts = dict(diagnostics.get("agreement", {}))
    (out / CARD).write_text(card_text(recipe.rule, rule.source, rule.model_dump(), start, branches, facts))
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "by_tensor": {"shared": by_tensor.shared, "branches": list(by_tensor.sources)} if by_tensor is not None else None,
        "versions": package_versions(), "warnings": list(warnings), "diagnostics": dict(diagnostics),
    }  # fmt: skip
    write_atomically(out / RECORD, json.dumps(record, indent=1) + "\n")


def _origin(model: str) -> str:
    """A hub id as it is; of a directory its last part, since a card is not the place for paths of a machine."""
    found = local_directory(model)
    return model if found is None or model.startswith("lab:") else found.resolve().name
