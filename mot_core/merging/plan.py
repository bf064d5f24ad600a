"""What a merge needs to agree on, checked from headers and configs before any tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mot_core.errors import MergeError
from mot_core.merging.lora import Factors, add_sampled_update, add_update, is_adapter, read_adapter
from mot_core.merging.tensors import FLOATS, Entry, MappedFiles, Output, read_header
from mot_core.merging.tokenizers import compare_tokenizers

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Fields of config.json that say how it was saved, not what the model is.
_CONFIG_NOISE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")
# Fields that say how a model is used, not what its weights mean: they may differ between checkpoints of any origin.
_CONFIG_USE = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "max_window_layers")
_OUTPUT_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class BranchFiles:
    """One model's tensors: where each key lies, from headers. A LoRA branch has its start's, and factors to add."""

    name: str
    directory: Path
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)
    is_adapter: bool = False
    aliases: dict[str, Entry] = field(default_factory=dict)
    """Tied heads, by the key of the embedding that they repeat."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: entry.shape for key, entry in self.entries.items()}

    def load(self, files: MappedFiles, key: str, offset: int, out: torch.Tensor) -> torch.Tensor:
        """Values `[offset, offset + N)` of a tensor into `out`, (N,) float64."""
        out.copy_(files.flat(self.entries[key])[offset : offset + len(out)])
        if key in self.factors:
            add_update(self.factors[key], files, offset, out)
        return out

    def sample(self, files: MappedFiles, key: str, stride: int) -> torch.Tensor:
        """Every `stride`-th value of a tensor, (n,) float64."""
        values = files.flat(self.entries[key])[::stride].to(torch.float64)
        if key in self.factors:
            add_sampled_update(self.factors[key], files, stride, values)
        return values


@dataclass(frozen=True)
class Plan:
    """A merge that can be applied."""

    start: BranchFiles | None
    branches: list[BranchFiles]
    outputs: list[Output]
    warnings: list[str]


def inspect(name: str, directory: Path, stem: str = "model") -> BranchFiles:
    """Read a model's tensor keys, shapes and types from its safetensors headers; or an adapter's, if it is one."""
    if is_adapter(directory) and not (directory / WEIGHTS).is_file() and not (directory / INDEX).is_file():
        return BranchFiles(name, directory, {}, is_adapter=True)
    weights, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (directory / index).is_file():
        weight_map = json.loads((directory / index).read_text())["weight_map"]
        paths = sorted({_inside(name, directory, file) for file in weight_map.values()})
    elif (directory / weights).is_file():
        paths = [directory / weights]
    else:
        raise MergeError(f"branch {name!r}: no {weights} or {index} in {directory}; expected a model as safetensors")
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        own, metadata = read_header(path, name)
        twice = sorted(set(own) & set(entries))
        if twice:
            raise MergeError(f"branch {name!r}: {twice[0]} is in two of its files; expected each tensor once")
        entries |= own
    return BranchFiles(name, directory, entries, metadata)


def _inside(name: str, directory: Path, file: str) -> Path:
    if Path(file).name != file:
        raise MergeError(f"branch {name!r}: its index names {file!r}; expected a file beside it")
    return directory / file


def make_plan(
    start: BranchFiles | None, branches: Sequence[BranchFiles], *, strict: bool = True, dtype: str | None = None,
    any_tokenizer: bool = False,
) -> Plan:  # fmt: skip
    """Every branch has the start's keys and shapes, and the first branch's types, config and tokenizer.

    `strict` is for branches of one round, whose configs and templates are the same; else differences that do not
    change what weights mean are warnings. `any_tokenizer`: the user has said whose tokenizer to take.

    Raises:
        MergeError: naming the branch, the key, what its start has and what it has.
    """
    aliases = {} if start is None else _aliases(start)
    for branch in branches:
        aliases |= _aliases(branch)
    start = None if start is None else _without(start, aliases)
    branches = [_without(branch, aliases) for branch in branches]
    branches = [_on_start(branch, start) if branch.is_adapter else branch for branch in branches]
    reference = start or branches[0]
    typed = next((branch for branch in branches if not branch.is_adapter), reference)
    warnings: list[str] = []
    for branch in branches:
        _same_tensors(reference, branch, "its start" if start is not None else f"branch {reference.name!r}")
        if not branch.is_adapter:
            _same_types(typed, branch, dtype)
    configured = [branch for branch in branches if (branch.directory / "config.json").is_file()]
    if not strict and start is not None:
        configured = [start, *configured]
    for model in configured[1:]:
        warnings += _same_config(configured[0], model, strict)
        warnings += compare_tokenizers(
            configured[0].name, configured[0].directory, model.name, model.directory, strict, any_tokenizer
        )
    outputs = [
        Output(key, _output_dtype(entry.dtype, dtype), entry.shape) for key, entry in sorted(typed.entries.items())
    ]
    return Plan(start, branches, outputs, warnings)


def _output_dtype(stored: str, asked: str | None) -> str:
    return _OUTPUT_DTYPES[asked] if asked is not None and stored in FLOATS else stored


def _aliases(model: BranchFiles) -> dict[str, str]:
    """Tied heads among a model's keys: head → embedding. Written twice, they would drift apart (mergekit issue 390)."""
    config = _config(model.directory)
    text = config.get("text_config")
    ties = config.get("tie_word_embeddings") or (isinstance(text, dict) and text.get("tie_word_embeddings"))
    heads = [key for key in model.entries if key.split(".")[-2:] == ["lm_head", "weight"]]
    embeddings = [key for key in model.entries if key.split(".")[-2:] == ["embed_tokens", "weight"]]
    return {heads[0]: embeddings[0]} if ties and len(heads) == len(embeddings) == 1 else {}


def _without(model: BranchFiles, aliases: Mapping[str, str]) -> BranchFiles:
    """A model without its tied heads, which are written once by leaving them out; they are compared on the way."""
    return replace(
        model, entries={key: entry for key, entry in model.entries.items() if key not in aliases},
        aliases={aliases[key]: entry for key, entry in model.entries.items() if key in aliases},
    )  # fmt: skip


def _on_start(branch: BranchFiles, start: BranchFiles | None) -> BranchFiles:
    """An adapter as the model that it makes of its start."""
    if start is None:
        raise MergeError(f"branch {branch.name!r} is an adapter: expected the model that it was trained on, as base")
    adapter = read_adapter(branch.name, branch.directory)
    unknown = sorted({*adapter.factors, *adapter.replaced} - set(start.entries))
    if unknown:
        raise MergeError(
            f"branch {branch.name!r}: its adapter changes {unknown[:3]}, which its start {start.directory} does not have"
        )
    for key, factors in adapter.factors.items():
        update = (factors.b.shape[0], factors.a.shape[1])
        if update != start.entries[key].shape:
            raise MergeError(
                f"branch {branch.name!r}: its adapter's update of {key} is {update}, its start has "
                f"{start.entries[key].shape}; was it trained on another model?"
            )
    return replace(branch, entries={**start.entries, **adapter.replaced}, factors=adapter.factors)


def _same_tensors(reference: BranchFiles, branch: BranchFiles, whose: str) -> None:
    missing = sorted(set(reference.entries) - set(branch.entries))
    extra = sorted(set(branch.entries) - set(reference.entries))
    if missing or extra:
        raise MergeError(
            f"branch {branch.name!r}: its tensors differ from {whose}'s: missing {missing[:3]}, "
            f"extra {extra[:3]} ({len(missing)} and {len(extra)} in all); is it another architecture?"
        )
    for key, entry in reference.entries.items():
        if branch.entries[key].shape != entry.shape:
            raise MergeError(
                f"branch {branch.name!r}: {key} is {branch.entries[key].shape}, {whose} has {entry.shape}; "
                "was the tokenizer resized?"
            )


def _same_types(first: BranchFiles, branch: BranchFiles, dtype: str | None) -> None:
    for key, entry in branch.entries.items():
        ours = first.entries[key].dtype
        converted = dtype is not None and {ours, entry.dtype} <= set(FLOATS)
        if entry.dtype != ours and not converted:
            raise MergeError(
                f"branch {branch.name!r}: {key} is of type {entry.dtype}, branch {first.name!r} has {ours}; "
                "save both in one type, or say in which the merge shall be written"
            )


def _same_config(first: BranchFiles, branch: BranchFiles, strict: bool) -> list[str]:
    ours, theirs = (_config(model.directory) for model in (first, branch))
    if not strict:
        ours, theirs = _one_form(ours), _one_form(theirs)
    warnings = []
    for key in sorted(set(ours) | set(theirs)):
        if ours.get(key) != theirs.get(key):
            what = (
                f"branch {branch.name!r}: config.{key} is {theirs.get(key)!r}, "
                f"branch {first.name!r} has {ours.get(key)!r}"
            )
            if strict or key not in _CONFIG_USE:
                raise MergeError(f"{what}; branches of one round share one architecture")
            warnings.append(f"{what}; the first one's is kept")
    return warnings


def _one_form(config: dict[str, Any]) -> dict[str, Any]:
    """Two versions' ways to write the same: rope, and fields that are absent where another writes null."""
    config = {key: value for key, value in config.items() if value is not None}
    rope = config.pop("rope_parameters", None) or config.pop("rope_scaling", None) or {}
    theta = config.pop("rope_theta", None)
    rope = {key: value for key, value in rope.items() if (key, value) != ("rope_type", "default")}
    if theta is not None:
        rope.setdefault("rope_theta", theta)
    config.pop("rope_scaling", None), config.pop("layer_types", None)
    return {**config, "rope": {key: float(v) if isinstance(v, int) else v for key, v in rope.items()}}


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return {key: value for key, value in config.items() if key not in _CONFIG_NOISE}
