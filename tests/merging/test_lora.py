"""LoRA branches: the full update and concatenation against sums of B A by hand; never A and B apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mot_core.errors import MergeError
from mot_core.merging.lora import concatenate, read_adapter
from mot_core.merging.plan import inspect
from mot_core.merging.stage import MergeSettings, merge_models
from mot_core.merging.tensors import MappedFiles
from tests.merging.models import load_all, write

Q, UP, NORM = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.norm.weight"
SHAPES = {Q: (40, 24), UP: (56, 24)}


def start_model(root: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{module}.weight": torch.randn(shape, generator=generator).to(dtype) for module, shape in SHAPES.items()
    }
    tensors[NORM] = torch.ones(24, dtype=dtype)
    write(root / "start", tensors)
    return tensors


def adapter(directory: Path, seed: int, rank: int, modules: tuple[str, ...] = (Q, UP), **config: Any) -> Path:
    """A random adapter in PEFT's layout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        out, width = SHAPES[module]
        own = config.get("rank_pattern", {}).get(module.rpartition(".")[2], rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(own, width, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, own, generator=generator)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "up_proj"], **config}
    (directory / "adapter_config.json").write_text(json.dumps(given))
    return directory


def update(directory: Path, module: str, scale: float) -> torch.Tensor:
    tensors = load_file(directory / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
    return scale * (b @ a)


def merge(root: Path, rule: str, weights: list[float], **settings: Any) -> dict[str, torch.Tensor]:
    (root / "out").mkdir()
    branches = [inspect(name, root / name) for name in ("ann", "bob")]
    merge_models(
        inspect("start", root / "start"), branches, weights, rule, root / "out", settings=MergeSettings(**settings)
    )
    return load_all(root / "out")


def test_the_mean_of_adapters_is_the_mean_of_full_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mot_core.merging import apply

    monkeypatch.setattr(apply, "BLOCK", 100)  # runs that begin and end inside rows of 24
    start = start_model(tmp_path)
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 3, 5)
    found = merge(tmp_path, "mean", [0.25, 0.75])
    for module in SHAPES:
        both = 0.25 * update(tmp_path / "ann", module, 2.0) + 0.75 * update(tmp_path / "bob", module, 2.0)
        expected = start[f"{module}.weight"].double() + both
        torch.testing.assert_close(found[f"{module}.weight"], expected.float(), rtol=2**-23, atol=1e-7)
    assert torch.equal(found[NORM], start[NORM])
    assert (tmp_path / "out" / "tokenizer.json").is_file() and not (tmp_path / "out" / "adapter_config.json").exists()


def test_factors_averaged_apart_would_give_another_model(tmp_path: Path) -> None:
    start = start_model(tmp_path)
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 3, 3)
    found = merge(tmp_path, "mean", [0.5, 0.5])
    ann, bob = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ann", "bob"))
    a, b = (
        (ann[k] + bob[k]) / 2 for k in (f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight")
    )
    apart = start[f"{Q}.weight"] + 2.0 * b @ a
    assert float((found[f"{Q}.weight"] - apart).abs().max()) > 1.0


def test_ties_trims_the_full_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mot_core.merging.rules.ties import Ties

    monkeypatch.setattr(Ties, "sample_size", 50)
    start = start_model(tmp_path)
    adapter(tmp_path / "ann", 2, 3, modules=(Q,)), adapter(tmp_path / "bob", 3, 3, modules=(UP,))
    found = merge(tmp_path, "ties", [1.0, 1.0], parameters={"density": 0.1})
    full = update(tmp_path / "ann", Q, 2.0)
    threshold = full.abs().flatten().sort(descending=True).values[int(0.1 * full.numel()) - 1]
    # Bob did not move this tensor, so ann's values are the mean of those that agree.
    expected = start[f"{Q}.weight"].double() + torch.where(full.abs() >= threshold, full, 0.0)
    torch.testing.assert_close(found[f"{Q}.weight"], expected.float(), rtol=1e-6, atol=1e-7)


def test_scales_follow_alpha_patterns_and_rank_stabilisation(tmp_path: Path) -> None:
    adapter(tmp_path / "ann", 2, 4, lora_alpha=12, rank_pattern={"up_proj": 2}, alpha_pattern={"up_proj": 5})
    adapter(tmp_path / "bob", 2, 4, lora_alpha=12, use_rslora=True)
    scales = {name: read_adapter(name, tmp_path / name).factors for name in ("ann", "bob")}
    assert scales["ann"][f"{Q}.weight"].scale == 3.0 and scales["ann"][f"{UP}.weight"].scale == 2.5
    assert scales["bob"][f"{Q}.weight"].scale == 6.0


def test_replaced_tensors_of_an_adapter_count_as_the_branchs_own(tmp_path: Path) -> None:
    start_model(tmp_path)
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 3, 3)
    path = tmp_path / "ann" / "adapter_model.safetensors"
    save_file({**load_file(path), f"base_model.model.{NORM}": 3 * torch.ones(24)}, path)
    assert merge(tmp_path, "mean", [0.5, 0.5])[NORM].tolist() == [2.0] * 24


def test_concatenation_is_the_weighted_sum_of_updates(tmp_path: Path) -> None:
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 3, 5, lora_alpha=5)
    (tmp_path / "out").mkdir()
    adapters = [(name, read_adapter(name, tmp_path / name)) for name in ("ann", "bob")]
    assert concatenate(adapters, [0.25, 0.75], tmp_path / "out", MappedFiles()) == 8
    joined = read_adapter("joined", tmp_path / "out")
    assert joined.factors[f"{Q}.weight"].scale == 1.0 and joined.factors[f"{Q}.weight"].rank == 8
    for module in SHAPES:
        expected = 0.25 * update(tmp_path / "ann", module, 2.0) + 0.75 * update(tmp_path / "bob", module, 1.0)
        torch.testing.assert_close(update(tmp_path / "out", module, 1.0), expected, rtol=1e-5, atol=1e-5)


def test_concatenation_equals_the_full_update(tmp_path: Path) -> None:
    start = start_model(tmp_path)
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 3, 5)
    found = merge(tmp_path, "mean", [0.5, 0.5])
    (tmp_path / "joined").mkdir()
    adapters = [(name, read_adapter(name, tmp_path / name)) for name in ("ann", "bob")]
    concatenate(adapters, [0.5, 0.5], tmp_path / "joined", MappedFiles())
    for module in SHAPES:
        whole = start[f"{module}.weight"].double() + update(tmp_path / "joined", module, 1.0)
        torch.testing.assert_close(found[f"{module}.weight"].double(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        ({"use_dora": True}, "has use_dora: DoRA rescales"),
        ({"bias": "all"}, r"trains biases \(all\)"),
        ({"peft_type": "IA3"}, "its adapter is of type IA3, expected LORA"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out: weights are transposed"),
    ],
)
def test_variants_whose_update_is_another_are_refused(tmp_path: Path, config: dict[str, Any], phrase: str) -> None:
    adapter(tmp_path / "ann", 2, 3, **config)
    with pytest.raises(MergeError, match=f"branch 'ann': .*{phrase}"):
        read_adapter("ann", tmp_path / "ann")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "start", {f"{Q}.weight": torch.zeros(40, 25), f"{UP}.weight": torch.zeros(56, 24)})
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 2, 3)
    with pytest.raises(MergeError, match=r"update of .*q_proj\.weight is \(40, 24\), its start has \(40, 25\)"):
        merge(tmp_path, "mean", [0.5, 0.5])


def test_adapters_of_different_modules_are_not_concatenated(tmp_path: Path) -> None:
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 2, 3, modules=(Q,))
    (tmp_path / "out").mkdir()
    adapters = [(name, read_adapter(name, tmp_path / name)) for name in ("ann", "bob")]
    with pytest.raises(MergeError, match=r"branch 'bob': its adapter differs from branch 'ann''s in .*up_proj"):
        concatenate(adapters, [0.5, 0.5], tmp_path / "out", MappedFiles())
