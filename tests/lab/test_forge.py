"""The forge: recipes have stable hashes, training is deterministic and learns, what is written loads."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from mot_core.lab import LAB_MODELS
from mot_core.lab.forge import forge
from mot_core.lab.recipe import DEFAULT_RECIPE, Recipe, quick_recipe, recipe_hash


def _weights_hash(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def _small_recipe(num_steps: int) -> Recipe:
    quick = quick_recipe(num_steps=num_steps)
    return replace(quick, batch_size=16, levels=replace(quick.levels, num_home_problems=8, num_panel_problems=4))


def test_the_recipe_names_every_model_and_its_shares_sum_to_one() -> None:
    assert tuple(model.name for model in DEFAULT_RECIPE.models) == LAB_MODELS
    for model in DEFAULT_RECIPE.models:
        assert math.isclose(sum(share for _, share in model.shares), 1.0), model.name
    assert len({model.seed for model in DEFAULT_RECIPE.models}) == len(LAB_MODELS)


def test_the_hash_follows_every_number() -> None:
    assert recipe_hash() == recipe_hash(DEFAULT_RECIPE)
    assert recipe_hash(replace(DEFAULT_RECIPE, learning_rate=2e-3)) != recipe_hash()
    assert recipe_hash(quick_recipe()) != recipe_hash()


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'student-huge': expected one of running-total"):
        forge(tmp_path, names=["student-huge"], quick=True)


@pytest.mark.slow
def test_a_quick_forge_learns_and_its_files_load(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = replace(_small_recipe(120), batch_size=32, warmup_steps=20)
    (run,) = forge(tmp_path, names=["student-tiny"], progress=lines.append, recipe=recipe)
    first, last = run.losses[0], run.losses[-1]
    assert last < first and last < math.log(104) / 2, run.losses
    assert lines[-1].startswith("student-tiny sums ")
    directory = tmp_path / "student-tiny"
    model = Qwen3ForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(directory).eos_token_id
    assert recipe_hash(recipe) in (directory / "README.md").read_text()
    levels = json.loads((tmp_path / "levels.json").read_text())
    assert levels["recipe_hash"] == recipe_hash(recipe)
    assert levels["models"]["student-tiny"]["sums"]["total"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["levels.json", "student-tiny"]


@pytest.mark.slow
def test_forging_again_gives_the_same_bits(tmp_path: Path) -> None:
    for place in ("first", "second"):
        forge(tmp_path / place, names=["student-tiny"], progress=lambda line: None, recipe=_small_recipe(20))
    assert _weights_hash(tmp_path / "first/student-tiny") == _weights_hash(tmp_path / "second/student-tiny")
