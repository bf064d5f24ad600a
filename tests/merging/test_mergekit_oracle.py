"""mergekit as an oracle: the same YAML, read by both, gives the same weights to float32's rounding.

Needs MOT_MERGEKIT_PYTHON, the interpreter of an environment with mergekit 0.1.5. DARE draws otherwise and is left out.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mot_core.merging.alone import merge
from mot_core.merging.recipe import load_recipe
from tests.merging.models import load_all

MERGEKIT = os.environ.get("MOT_MERGEKIT_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MERGEKIT, reason="needs MOT_MERGEKIT_PYTHON, an interpreter that has mergekit"),
]

ANN, BOB, BASE = "ANN", "BOB", "BASE"
PER_MODEL = {
    "linear": [{"weight": 0.3}, {"weight": 0.9}],
    "task_arithmetic": [{"weight": 0.7}, {"weight": [0.2, 0.6]}],
    "ties": [{"weight": 0.6, "density": 0.5}, {"weight": 0.4, "density": 0.8}],
}


def document(method: str) -> dict[str, object]:
    if method == "slerp":
        values = [{"filter": "self_attn", "value": [0.0, 1.0]}, {"filter": "mlp", "value": 0.25}, {"value": 0.5}]
        return {
            "merge_method": "slerp", "base_model": ANN, "models": [{"model": ANN}, {"model": BOB}],
            "parameters": {"t": values}, "dtype": "float32",
        }  # fmt: skip
    models = [{"model": m, "parameters": p} for m, p in zip((ANN, BOB), PER_MODEL[method], strict=True)]
    base = {} if method == "linear" else {"base_model": BASE}
    return {"merge_method": method, **base, "models": models, "dtype": "float32"}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "slerp"])
def test_weights_equal_mergekits(pico_models: Path, tmp_path: Path, method: str) -> None:
    text = yaml.safe_dump(document(method))
    for mark, name in ((ANN, "ann"), (BOB, "bob"), (BASE, "student")):
        text = text.replace(mark, str(pico_models / name))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    recipe, by_tensor = load_recipe(config)
    merge(recipe, tmp_path / "ours", by_tensor)
    command = [str(MERGEKIT), "-m", "mergekit.scripts.run_yaml", str(config), str(tmp_path / "theirs")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = load_all(tmp_path / "ours"), load_all(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    ann = load_file(pico_models / "ann" / "model.safetensors")
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}")
    assert any(not torch.equal(ours[key], ann[key]) for key in ours)
