"""LoRA branches: an adapter read as the model that it makes of its start, and adapters merged into one adapter.

A branch's update is s B A (Hu et al. 2021, arXiv 2106.09685), so K updates average as Σ wₖ sₖ Bₖ Aₖ. Means of the Aₖ
and of the Bₖ apart would add the cross terms Bᵢ Aⱼ (peft issue 3013); nothing here does that. Two exact ways:

    full update     θ = θ₀ + s B A, a run of rows at a time; every rule applies to it, K models are never held
    concatenation   A = [A₁; …; A_K], B = [w₁ s₁ B₁ … w_K s_K B_K]: one adapter of rank Σ rₖ, for weighted sums
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mot_core.errors import MergeError
from mot_core.merging.tensors import DTYPES, FLOATS, Entry, MappedFiles, Output, ShardWriter, read_header

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.(?:default\.)?weight$")
# What changes the update from s B A to something else; refused unless absent.
_REFUSED = {
    "use_dora": "DoRA rescales the weights", "fan_in_fan_out": "weights are transposed", "lora_bias": "B has a bias",
    "layer_replication": "layers are repeated",
}  # fmt: skip


@dataclass(frozen=True)
class Factors:
    """One adapted tensor: the start's tensor plus `scale` · B A, with A (r, in) and B (out, r)."""

    a: Entry
    b: Entry
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in PEFT's layout: factors by the start's key, and tensors that it replaces."""

    factors: dict[str, Factors]
    replaced: dict[str, Entry]
    config: dict[str, Any]


def is_adapter(directory: Path) -> bool:
    return (directory / ADAPTER_CONFIG).is_file()


def read_adapter(name: str, directory: Path) -> Adapter:
    """An adapter's factors, from its config and header.

    Raises:
        MergeError: a variant whose update is not s B A, or factors that do not belong together.
    """
    config: dict[str, Any] = json.loads((directory / ADAPTER_CONFIG).read_text())
    where = f"branch {name!r}"
    if config.get("peft_type", "LORA") != "LORA":
        raise MergeError(f"{where}: its adapter is of type {config['peft_type']}, expected LORA")
    for field, reason in _REFUSED.items():
        if config.get(field):
            raise MergeError(f"{where}: {ADAPTER_CONFIG} has {field}: {reason}; merge it into its model first")
    if config.get("bias", "none") != "none":
        raise MergeError(f"{where}: {ADAPTER_CONFIG} trains biases ({config['bias']}); merge it into its model first")
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise MergeError(f"{where}: no {ADAPTER_WEIGHTS} in {directory}; expected the adapter as safetensors")
    entries, _ = read_header(directory / ADAPTER_WEIGHTS, name)
    sides: dict[str, dict[str, Entry]] = {}
    replaced = {}
    for key, entry in entries.items():
        match = _FACTOR.match(key.removeprefix(_PREFIX))
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = entry
        elif "lora_" in key:
            raise MergeError(f"{where}: {key}: only adapters of linear layers (lora_A, lora_B) are understood")
        else:
            replaced[key.removeprefix(_PREFIX)] = entry
    factors = {}
    for module, pair in sides.items():
        if set(pair) != {"A", "B"} or len(pair["A"].shape) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            shapes = {side: entry.shape for side, entry in pair.items()}
            raise MergeError(f"{where}: {module} has factors {shapes}, expected A (r, in) and B (out, r)")
        factors[f"{module}.weight"] = Factors(pair["A"], pair["B"], _scale(config, module, pair["A"].shape[0]))
    return Adapter(factors, replaced, config)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """s: alpha / r, or alpha / √r for rank-stabilized LoRA (arXiv 2312.03732), by the config's patterns."""
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def add_update(factors: Factors, files: MappedFiles, offset: int, values: torch.Tensor) -> None:
    """Add s B A to values `[offset, offset + N)` of the adapted tensor, in float64."""
    columns = factors.a.shape[1]
    first, last = offset // columns, -(-(offset + len(values)) // columns)
    a = files.flat(factors.a).reshape(factors.a.shape).to(torch.float64)
    b = files.flat(factors.b).reshape(factors.b.shape)[first:last].to(torch.float64)
    update = (b @ a).reshape(-1)
    skipped = offset - first * columns
    values.add_(update[skipped : skipped + len(values)], alpha=factors.scale)


def add_sampled_update(factors: Factors, files: MappedFiles, stride: int, values: torch.Tensor) -> None:
    """Add s B A to every `stride`-th value of the adapted tensor."""
    columns = factors.a.shape[1]
    places = torch.arange(0, len(values) * stride, stride)
    a = files.flat(factors.a).reshape(factors.a.shape).to(torch.float64)[:, places % columns]
    b = files.flat(factors.b).reshape(factors.b.shape).to(torch.float64)[places // columns]
    values.add_((b * a.T).sum(1), alpha=factors.scale)


def concatenate(
    branches: Sequence[tuple[str, Adapter]], weights: Sequence[float], out_dir: Path, files: MappedFiles
) -> int:
    """Write the adapter whose update is Σ wₖ sₖ Bₖ Aₖ; its rank.

    Factors are written in float32 or wider, whatever they were read from: A as it is, B rounded once. Tensors that
    adapters replace are averaged, and keep their type.

    Raises:
        MergeError: adapters of different modules.
    """
    names = [name for name, _ in branches]
    adapters = [adapter for _, adapter in branches]
    modules = list(adapters[0].factors)
    for name, adapter in branches[1:]:
        for what in ("factors", "replaced"):
            ours, theirs = set(getattr(adapters[0], what)), set(getattr(adapter, what))
            if ours != theirs:
                raise MergeError(
                    f"branch {name!r}: its adapter differs from branch {names[0]!r}'s in {sorted(ours ^ theirs)[:3]}; "
                    "adapters that are concatenated adapt the same modules; use lora: full"
                )
    ranks = {key: sum(adapter.factors[key].rank for adapter in adapters) for key in modules}
    outputs = []
    for key in modules:
        first = adapters[0].factors[key]
        module = _PREFIX + key.removesuffix(".weight")
        dtype = "F64" if first.b.dtype == "F64" else "F32"
        outputs.append(Output(f"{module}.lora_A.weight", dtype, (ranks[key], first.a.shape[1])))
        outputs.append(Output(f"{module}.lora_B.weight", dtype, (first.b.shape[0], ranks[key])))
    outputs += [Output(_PREFIX + key, entry.dtype, entry.shape) for key, entry in adapters[0].replaced.items()]
    by_key = {output.key: output for output in outputs}
    with ShardWriter(out_dir, "adapter_model", outputs, 1 << 62, {"format": "pt"}) as writer:
        for key in modules:
            module = _PREFIX + key.removesuffix(".weight")
            own = [adapter.factors[key] for adapter in adapters]
            parts_a = [_matrix(files, name, factor.a) for name, factor in zip(names, own, strict=True)]
            parts_b = [
                _matrix(files, name, factor.b) * (weight * factor.scale)
                for name, factor, weight in zip(names, own, weights, strict=True)
            ]
            _write(writer, by_key[f"{module}.lora_A.weight"], torch.cat(parts_a, 0))
            _write(writer, by_key[f"{module}.lora_B.weight"], torch.cat(parts_b, 1))
        for key in adapters[0].replaced:
            total = sum(
                weight * _matrix(files, name, adapter.replaced[key])
                for (name, adapter), weight in zip(branches, weights, strict=True)
            )
            assert isinstance(total, torch.Tensor)
            _write(writer, by_key[_PREFIX + key], total)
    rank = max(ranks.values())
    config = {
        **adapters[0].config, "r": rank, "lora_alpha": rank, "use_rslora": False,
        "rank_pattern": {key.removesuffix(".weight"): own for key, own in ranks.items() if own != rank},
        "alpha_pattern": {key.removesuffix(".weight"): own for key, own in ranks.items() if own != rank},
    }  # fmt: skip
    (out_dir / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return rank


def _matrix(files: MappedFiles, name: str, entry: Entry) -> torch.Tensor:
    if entry.dtype not in FLOATS:
        raise MergeError(f"branch {name!r}: {entry.path} holds {entry.dtype}, expected floating point")
    values = files.flat(entry).reshape(entry.shape).to(torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise MergeError(f"branch {name!r}: {entry.path} holds NaN or infinity; expected finite weights")
    return values


def _write(writer: ShardWriter, output: Output, values: torch.Tensor) -> None:
    writer.write(output.key, 0, values.to(DTYPES[output.dtype]).reshape(-1))
