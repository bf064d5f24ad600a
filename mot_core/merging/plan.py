"""What a merge needs to agree on, checked from headers and configs before any tensor is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mot_core.errors import MergeError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Fields of config.json that say how it was saved, not what the model is.
_CONFIG_NOISE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")


@dataclass(frozen=True)
class BranchFiles:
    """One model's tensors: which file holds each key, and its shape."""

    name: str
    directory: Path
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]


def inspect(name: str, directory: Path) -> BranchFiles:
    """Read a model's tensor keys and shapes from its safetensors headers."""
    if (directory / INDEX).is_file():
        weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
        paths = sorted({directory / file for file in weight_map.values()})
    elif (directory / WEIGHTS).is_file():
        paths = [directory / WEIGHTS]
    else:
        raise MergeError(f"branch {name!r}: no {WEIGHTS} or {INDEX} in {directory}; expected a model as safetensors")
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                files[key] = path
                shapes[key] = tuple(tensors.get_slice(key).get_shape())
    return BranchFiles(name, directory, files, shapes)


def validate(start: BranchFiles, branches: list[BranchFiles]) -> None:
    """Every branch has the start's keys and shapes, and the first branch's config and tokenizer.

    Raises:
        MergeError: naming the branch, the key, what its start has and what it has.
    """
    for branch in branches:
        missing = sorted(set(start.shapes) - set(branch.shapes))
        extra = sorted(set(branch.shapes) - set(start.shapes))
        if missing or extra:
            raise MergeError(
                f"branch {branch.name!r}: its tensors differ from its start's: missing {missing[:3]}, "
                f"extra {extra[:3]} ({len(missing)} and {len(extra)} in all); is it another architecture?"
            )
        for key, shape in start.shapes.items():
            if branch.shapes[key] != shape:
                raise MergeError(
                    f"branch {branch.name!r}: {key} is {branch.shapes[key]}, its start has {shape}; "
                    "was the tokenizer resized?"
                )
        _same_config(branches[0], branch)
        _same_tokenizer(branches[0], branch)


def _same_config(first: BranchFiles, branch: BranchFiles) -> None:
    ours, theirs = (_config(model.directory) for model in (first, branch))
    for key in sorted(set(ours) | set(theirs)):
        if ours.get(key) != theirs.get(key):
            raise MergeError(
                f"branch {branch.name!r}: config.{key} is {theirs.get(key)!r}, "
                f"branch {first.name!r} has {ours.get(key)!r}; "
                "branches of one round share one architecture"
            )


def _config(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text())
    return {key: value for key, value in config.items() if key not in _CONFIG_NOISE}


def _same_tokenizer(first: BranchFiles, branch: BranchFiles) -> None:
    for file in ("tokenizer.json", "chat_template.jinja"):
        ours, theirs = (_digest(model.directory / file) for model in (first, branch))
        if ours != theirs:
            raise MergeError(
                f"branch {branch.name!r}: {file} differs from branch {first.name!r}'s; token ids would not mean the "
                "same; train every branch with its start's tokenizer"
            )


def _digest(path: Path) -> str | None:
    """A hash of a JSON file's content (not its layout), or of another file's bytes; None if it is absent."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if path.suffix == ".json":
        document = json.loads(data)
        # Set by the last call that padded or cut, not by the vocabulary.
        document.pop("padding", None), document.pop("truncation", None)
        data = json.dumps(document, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()
