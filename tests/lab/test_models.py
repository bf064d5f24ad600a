"""The embedded weights: they are there, they are the recipe's, and their levels leave room to learn."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from mot_core.lab import (
    LATER_STUDENTS,
    LATER_TEACHERS,
    STUDENTS,
    TEACHERS,
    WEIGHTS_DIR,
    lab_model_path,
)
from mot_core.lab.families import PANEL, draw_problems
from mot_core.lab.levels import boxed_answer, count_correct, levels_file, sample_completions
from mot_core.lab.recipe import DEFAULT_RECIPE, LATER_RECIPE, RECIPES, Recipe, recipe_hash
from mot_core.lab.styles import write_rationale
from mot_core.lab.tokenizer import END, render_completion
from mot_core.problems import Problem


@pytest.mark.parametrize(
    ("name", "recipe"), [(model.name, recipe) for recipe in RECIPES.values() for model in recipe.models]
)
def test_every_model_is_a_complete_directory(name: str, recipe: Recipe) -> None:
    path = lab_model_path(name)
    for file in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"):
        assert (path / file).is_file(), file
    assert recipe_hash(recipe) in (path / "README.md").read_text()


def test_all_weights_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS_DIR.rglob("*") if path.is_file()) < 15_000_000


def test_an_unknown_model_gets_the_nearest_spelling() -> None:
    with pytest.raises(ValueError, match=r"unknown laboratory model 'student-smal': .*did you mean 'student-small'"):
        lab_model_path("student-smal")


@pytest.mark.parametrize(
    ("recipe", "teachers", "students"),
    [(DEFAULT_RECIPE, TEACHERS, STUDENTS), (LATER_RECIPE, LATER_TEACHERS, LATER_STUDENTS)],
    ids=list(RECIPES),
)
def test_the_levels_are_the_recipes_and_leave_room_to_learn(
    recipe: Recipe, teachers: tuple[str, ...], students: tuple[str, ...]
) -> None:
    levels: dict[str, Any] = json.loads((WEIGHTS_DIR / levels_file(recipe)).read_text())
    assert levels["recipe_hash"] == recipe_hash(recipe)
    models = levels["models"]
    assert set(models) == {*teachers, *students}
    home = recipe.home_families
    for student in students:
        for family in home:
            assert 0.13 <= models[student][family]["accuracy"] <= 0.60, (student, family)
        assert models[student]["panel_mean"] >= 0.85, student
    for family in home:
        assert max(models[teacher][family]["accuracy"] for teacher in teachers) >= 0.85, family
    for model in models.values():
        assert min(model[family]["total"] for family in home) >= 400
        assert sum(model[family]["total"] for family in PANEL) >= 200


@pytest.mark.parametrize("name", [*LATER_TEACHERS, *LATER_STUDENTS])
def test_the_later_models_answer_in_form_and_in_their_style(name: str) -> None:
    path = lab_model_path(name)
    model = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    problems = draw_problems("short-clock", "test", 16, 3)
    tokenizer = AutoTokenizer.from_pretrained(path)
    completions = sample_completions(model, tokenizer, problems, temperature=0.7, seed=1, max_completion_tokens=96)
    assert sum(count_correct(problems, completions)) >= (8 if name in LATER_TEACHERS else 4)
    styles = LATER_RECIPE.model(name).styles
    for problem, completion in zip(problems, completions, strict=True):
        assert re.fullmatch(r"<think>[-+hm0-9:,;=]+</think>\\boxed\{[0-9]{1,2}:[0-9]{2}\}", completion), completion
        written = {render_completion(write_rationale(style, problem), problem.answer) for style in styles}
        assert not count_correct([problem], [completion])[0] or f"{completion}{END}" in written, completion


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>34+57=91</think>\\boxed{91}", "91"),
        ("\\boxed{1}\\boxed{2}", "2"),
        ("\\boxed{91", None),
        ("91", None),
        ("", None),
        ("\\boxed{}", ""),
    ],
)
def test_the_last_box_is_the_answer(completion: str, answer: str | None) -> None:
    assert boxed_answer(completion) == answer


def test_correct_completions_are_marked_one_by_one() -> None:
    problems = [Problem.of("sums", "34+57", "91")] * 3
    assert count_correct(problems, ["\\boxed{91}", "\\boxed{92}", "91"]) == [True, False, False]
