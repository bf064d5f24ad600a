"""How good the forged models are: sampled on the test splits, graded, counted, written beside the weights.

The laboratory's claims need students with room to learn and teachers worth learning from; this is where both
are measured. Invariant: levels belong to the bf16 weights as saved, computed in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from mot_core.lab.families import HOME, PANEL, check_answer, draw_problems
from mot_core.lab.recipe import DEFAULT_RECIPE, Recipe, recipe_hash
from mot_core.lab.tokenizer import BOX_OPEN, END, render_prompt
from mot_core.problems import Problem

_SAMPLES_AT_ONCE = 256


def measure_levels(
    weights_dir: str | Path, recipe: Recipe = DEFAULT_RECIPE, progress: Callable[[str], None] = print
) -> dict[str, Any]:
    """Accuracy of each model in `weights_dir` on each benchmark, a sample a problem; writes `levels_file(recipe)`."""
    weights = Path(weights_dir)
    models: dict[str, Any] = {}
    for model_recipe in recipe.models:
        if (weights / model_recipe.name / "model.safetensors").is_file():
            models[model_recipe.name] = _model_levels(weights / model_recipe.name, recipe)
            progress(f"{model_recipe.name} {_summary(models[model_recipe.name], recipe)}")
    levels: dict[str, Any] = {
        "recipe_hash": recipe_hash(recipe),
        "split": "test",
        "temperature": recipe.levels.temperature,
        "seed": recipe.levels.seed,
        "models": models,
    }
    (weights / levels_file(recipe)).write_text(json.dumps(levels, indent=2) + "\n", encoding="utf-8")
    return levels


def levels_file(recipe: Recipe) -> str:
    """Where a recipe's levels are written: `levels.json` for the first, `levels-clock.json` for a home of `clock`."""
    return "levels.json" if recipe.home_families == HOME else f"levels-{'-'.join(recipe.home_families)}.json"


def sample_completions(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    temperature: float,
    seed: int,
    max_completion_tokens: int = 96,
) -> list[str]:
    """One completion a problem, without the end token; without one it ran into the limit."""
    torch.manual_seed(seed)
    completions: list[str] = []
    for at in range(0, len(problems), _SAMPLES_AT_ONCE):
        prompts = [render_prompt(problem.question) for problem in problems[at : at + _SAMPLES_AT_ONCE]]
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            output_BL: Any = model.generate(  # type: ignore[operator, unused-ignore]
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_completion_tokens,
            )
        for row in output_BL[:, encoded["input_ids"].shape[1] :]:
            completions.append(str(tokenizer.decode(row)).partition(END)[0])
    return completions


def boxed_answer(completion: str) -> str | None:
    """What stands in the completion's last box, None without one."""
    _, opened, rest = completion.rpartition(BOX_OPEN)
    answer, closed, _ = rest.partition("}")
    return answer if opened and closed else None


def count_correct(problems: Sequence[Problem], completions: Sequence[str]) -> list[bool]:
    """For each problem whether its completion's boxed answer is right."""
    return [
        answer is not None and check_answer(problem.family, problem.answer, answer)
        for problem, answer in zip(problems, map(boxed_answer, completions), strict=True)
    ]


def _model_levels(path: Path, recipe: Recipe) -> dict[str, Any]:
    levels = recipe.levels
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    model = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    result: dict[str, Any] = {}
    for family in (*recipe.home_families, *PANEL):
        num_problems = levels.num_panel_problems if family in PANEL else levels.num_home_problems
        problems = draw_problems(family, "test", num_problems, levels.seed)
        completions = sample_completions(
            model, tokenizer, problems, levels.temperature, levels.seed, levels.max_completion_tokens
        )
        correct = sum(count_correct(problems, completions))
        result[family] = {
            "correct": correct,
            "total": num_problems,
            "accuracy": round(correct / num_problems, 4),
        }
    result["panel_mean"] = round(sum(result[family]["accuracy"] for family in PANEL) / len(PANEL), 4)
    return result


def _summary(levels: dict[str, Any], recipe: Recipe) -> str:
    return " ".join(f"{family} {levels[family]['accuracy']:.3f}" for family in (*recipe.home_families, *PANEL))
