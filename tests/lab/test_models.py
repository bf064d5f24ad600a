"""The embedded weights: they are there, they are the recipe's, and their levels leave room to learn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mot_core.lab import LAB_MODELS, STUDENTS, TEACHERS, WEIGHTS_DIR, lab_model_path
from mot_core.lab.families import HOME, PANEL
from mot_core.lab.levels import boxed_answer, count_correct
from mot_core.lab.recipe import recipe_hash
from mot_core.problems import Problem


def _levels() -> dict[str, Any]:
    levels: dict[str, Any] = json.loads((WEIGHTS_DIR / "levels.json").read_text())
    return levels


@pytest.mark.parametrize("name", LAB_MODELS)
def test_every_model_is_a_complete_directory(name: str) -> None:
    path = lab_model_path(name)
    for file in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"):
        assert (path / file).is_file(), file
    assert recipe_hash() in (path / "README.md").read_text()


def test_all_weights_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS_DIR.rglob("*") if path.is_file()) < 15_000_000


def test_an_unknown_model_gets_the_nearest_spelling() -> None:
    with pytest.raises(ValueError, match=r"unknown laboratory model 'student-smal': .*did you mean 'student-small'"):
        lab_model_path("student-smal")


def test_the_levels_are_the_recipes_and_leave_room_to_learn() -> None:
    levels = _levels()
    assert levels["recipe_hash"] == recipe_hash()
    models = levels["models"]
    assert set(models) == set(LAB_MODELS)
    for student in STUDENTS:
        for family in HOME:
            assert 0.15 <= models[student][family]["accuracy"] <= 0.60, (student, family)
        assert models[student]["panel_mean"] >= 0.85, student
    for family in HOME:
        assert max(models[teacher][family]["accuracy"] for teacher in TEACHERS) >= 0.85, family
    for model in models.values():
        assert min(model[family]["total"] for family in HOME) >= 400
        assert sum(model[family]["total"] for family in PANEL) >= 200


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
