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

from mot_core.errors import SpecError
from mot_core.lab import LAB_MODELS, LATER_STUDENTS, LATER_TEACHERS, STUDENTS, TEACHERS
from mot_core.lab.families import HOME
from mot_core.lab.forge import forge
from mot_core.lab.levels import levels_file
from mot_core.lab.recipe import DEFAULT_RECIPE, LATER_RECIPE, RECIPES, Recipe, quick_recipe, recipe_hash, recipe_named


def _weights_hash(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def _small_recipe(num_steps: int) -> Recipe:
    quick = quick_recipe(num_steps=num_steps)
    return replace(quick, batch_size=16, levels=replace(quick.levels, num_home_problems=8, num_panel_problems=4))


def test_the_recipes_name_every_model_and_its_shares_sum_to_one() -> None:
    assert tuple(model.name for model in DEFAULT_RECIPE.models) == (*TEACHERS, *STUDENTS)
    assert tuple(model.name for model in LATER_RECIPE.models) == (*LATER_TEACHERS, *LATER_STUDENTS)
    models = [model for recipe in RECIPES.values() for model in recipe.models]
    assert tuple(model.name for model in models) == LAB_MODELS
    for model in models:
        assert math.isclose(sum(share for _, share in model.shares), 1.0), model.name
    assert len({model.seed for model in models}) == len(LAB_MODELS)


def test_the_recipes_are_frozen() -> None:
    assert recipe_hash() == "f4d8126d653ba9a7"
    assert recipe_hash(LATER_RECIPE) == "691d209f67e207e5"


def test_each_recipe_has_its_home_families_and_its_levels_file() -> None:
    assert (DEFAULT_RECIPE.home_families, levels_file(DEFAULT_RECIPE)) == (HOME, "levels.json")
    assert (LATER_RECIPE.home_families, levels_file(LATER_RECIPE)) == (("clock",), "levels-clock.json")


def test_a_recipe_is_named_or_refused() -> None:
    assert recipe_named("first") is DEFAULT_RECIPE and recipe_named("later") is LATER_RECIPE
    with pytest.raises(SpecError, match="unknown recipe 'latest': expected one of first, later"):
        recipe_named("latest")


def test_the_hash_follows_every_number() -> None:
    assert recipe_hash() == recipe_hash(DEFAULT_RECIPE)
    assert recipe_hash(replace(DEFAULT_RECIPE, learning_rate=2e-3)) != recipe_hash()
    assert recipe_hash(quick_recipe()) != recipe_hash()


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no model 'student-huge': expected one of running-total"):
        forge(tmp_path, names=["student-huge"], quick=True)
    with pytest.raises(SpecError, match="no model 'student-tiny': expected one of clock-running"):
        forge(tmp_path, names=["student-tiny"], quick=True, recipe=LATER_RECIPE)


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
def test_the_later_laboratory_is_forged_by_the_same_code(tmp_path: Path) -> None:
    quick = quick_recipe(LATER_RECIPE, num_steps=4)
    recipe = replace(quick, batch_size=16, levels=replace(quick.levels, num_home_problems=8, num_panel_problems=4))
    forge(tmp_path, names=["student-clock"], progress=lambda line: None, recipe=recipe)
    levels = json.loads((tmp_path / "levels-clock.json").read_text())
    assert levels["recipe_hash"] == recipe_hash(recipe)
    assert levels["models"]["student-clock"]["clock"]["total"] == 8
    assert "sums" not in levels["models"]["student-clock"]
    card = (tmp_path / "student-clock" / "README.md").read_text()
    assert recipe_hash(recipe) in card and "times" in card and "levels-clock.json" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["levels-clock.json", "student-clock"]


@pytest.mark.slow
def test_forging_again_gives_the_same_bits(tmp_path: Path) -> None:
    for place in ("first", "second"):
        forge(tmp_path / place, names=["student-tiny"], progress=lambda line: None, recipe=_small_recipe(20))
    assert _weights_hash(tmp_path / "first/student-tiny") == _weights_hash(tmp_path / "second/student-tiny")
