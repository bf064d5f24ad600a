"""Trains the laboratory's models from a recipe: `python -m mot_core.lab.forge --out DIR`.

Plain fp32 loop on one thread. Invariant: a model is a function of its recipe alone, not of which other models
are forged beside it; each directory appears complete or not at all.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mot_core.lab.families import HOME, PANEL, draw_problems
from mot_core.lab.levels import levels_file, measure_levels
from mot_core.lab.recipe import (
    DEFAULT_RECIPE,
    RECIPES,
    ModelRecipe,
    Recipe,
    Shape,
    quick_recipe,
    recipe_hash,
    recipe_named,
)
from mot_core.lab.styles import write_panel_rationale, write_rationale
from mot_core.lab.tokenizer import build_tokenizer, render_completion, render_prompt
from mot_core.problems import Problem

_IGNORED = -100
# Problems drawn a family, at most; a student that needs more meets them again in another style.
_MAX_PROBLEMS = 60_000
_REPORT_EVERY = 100


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and completion; the loss is on `token_ids[prompt_length:]`."""

    token_ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class ForgedModel:
    """What one training run was like; `losses` are means over `_REPORT_EVERY` steps or fewer."""

    name: str
    losses: tuple[float, ...]
    seconds: float
    tokens_per_second: float


def forge(
    out_dir: str | Path,
    names: Sequence[str] | None = None,
    quick: bool = False,
    progress: Callable[[str], None] = print,
    recipe: Recipe | None = None,
) -> list[ForgedModel]:
    """Trains the named models (all by default) into `out_dir/<name>/` and measures every model of the recipe there.

    `recipe` is the first laboratory's where absent; `quick` takes 20 steps a model. Existing directories are replaced.
    """
    chosen = quick_recipe(recipe or DEFAULT_RECIPE) if quick else recipe or DEFAULT_RECIPE
    models = [chosen.model(name) for name in (names or [model.name for model in chosen.models])]
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    forged = [_forge_one(model, chosen, out, progress) for model in models]
    measure_levels(out, chosen, progress=progress)
    return forged


def _forge_one(recipe: ModelRecipe, whole: Recipe, out: Path, progress: Callable[[str], None]) -> ForgedModel:
    tokenizer = build_tokenizer()
    threads = torch.get_num_threads()
    # Sums are split over threads, so another number of threads would give other weights.
    torch.set_num_threads(1)
    try:
        model, run = train_model(recipe, whole, tokenizer, progress)
    finally:
        torch.set_num_threads(threads)
    _publish(model, tokenizer, recipe, whole, run, out)
    return run


def train_model(
    recipe: ModelRecipe, whole: Recipe, tokenizer: PreTrainedTokenizerFast, progress: Callable[[str], None]
) -> tuple[Qwen3ForCausalLM, ForgedModel]:
    """One model from scratch, in fp32, with what its run was like."""
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(_model_config(recipe.shape, tokenizer)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=whole.learning_rate, betas=whole.betas, weight_decay=whole.weight_decay
    )
    recent: list[float] = []
    losses: list[float] = []
    num_tokens = 0
    started = time.perf_counter()
    for step, batch in enumerate(_batches(recipe, whole, tokenizer)):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, recipe.num_steps, whole)
        input_ids, labels = _collate(batch, tokenizer)
        num_tokens += sum(len(example.token_ids) for example in batch)
        recent.append(_train_step(model, optimizer, input_ids, labels, whole.max_grad_norm))
        if len(recent) == _REPORT_EVERY or step + 1 == recipe.num_steps:
            losses.append(sum(recent) / len(recent))
            recent = []
            seconds = time.perf_counter() - started
            progress(f"{recipe.name} step {step + 1}/{recipe.num_steps} loss {losses[-1]:.4f} {seconds:.0f} s")
    seconds = time.perf_counter() - started
    return model, ForgedModel(recipe.name, tuple(losses), seconds, num_tokens / seconds)


def _train_step(
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    input_ids_BL: torch.Tensor,
    labels_BL: torch.Tensor,
    max_grad_norm: float,
) -> float:
    # Padding is on the right and attention is causal, so no mask is needed: padding only looks back.
    logits_BLV = model(input_ids=input_ids_BL, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=_IGNORED
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return loss.item()


def _learning_rate(step: int, num_steps: int, whole: Recipe) -> float:
    """Linear warm-up, then half a cosine down to the floor."""
    if step < whole.warmup_steps:
        return whole.learning_rate * (step + 1) / whole.warmup_steps
    done = (step - whole.warmup_steps) / max(1, num_steps - whole.warmup_steps)
    span = whole.learning_rate - whole.learning_rate_floor
    return whole.learning_rate_floor + span * 0.5 * (1 + math.cos(math.pi * done))


def _batches(recipe: ModelRecipe, whole: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Example]]:
    rng = random.Random(recipe.seed)
    problems = _supply(recipe, whole, rng)
    families = [family for family, _ in recipe.shares]
    weights = [share for _, share in recipe.shares]
    made = 0
    while made < recipe.num_steps:
        window_size = whole.batch_size * whole.batches_a_window
        drawn = [next(problems[family]) for family in rng.choices(families, weights, k=window_size)]
        examples = [_example(problem, rng.choice(recipe.styles), tokenizer) for problem in drawn]
        examples.sort(key=lambda example: len(example.token_ids))
        batches = [examples[at : at + whole.batch_size] for at in range(0, window_size, whole.batch_size)]
        rng.shuffle(batches)
        yield from batches[: recipe.num_steps - made]
        made += len(batches)


def _supply(recipe: ModelRecipe, whole: Recipe, rng: random.Random) -> dict[str, Iterator[Problem]]:
    """For each family an endless supply of train problems: a pool, shuffled anew each time it is used up."""
    supply = {}
    for family, share in recipe.shares:
        wanted = math.ceil(share * recipe.num_steps * whole.batch_size * 1.05) + 100
        # Words, single products and pairs of times are few; primers repeat anyway, over styles.
        limit = {"reverse": 8_000, "count": 8_000, "short-products": 8_000, "short-clock": 8_000}.get(
            family, _MAX_PROBLEMS
        )
        pool = draw_problems(family, "train", min(wanted, limit), recipe.seed)
        supply[family] = _cycle(pool, random.Random(rng.random()))
    return supply


def _cycle(pool: list[Problem], rng: random.Random) -> Iterator[Problem]:
    while True:
        yield from pool
        rng.shuffle(pool)


def _example(problem: Problem, style: str, tokenizer: PreTrainedTokenizerFast) -> Example:
    rationale = write_panel_rationale(problem) if problem.family in PANEL else write_rationale(style, problem)
    prompt_ids: list[int] = tokenizer.encode(render_prompt(problem.question))
    completion_ids: list[int] = tokenizer.encode(render_completion(rationale, problem.answer))
    return Example((*prompt_ids, *completion_ids), len(prompt_ids))


def _collate(batch: list[Example], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(example.token_ids) for example in batch)
    input_ids_BL = torch.full((len(batch), length), tokenizer.pad_token_id, dtype=torch.long)
    labels_BL = torch.full((len(batch), length), _IGNORED, dtype=torch.long)
    for row, example in enumerate(batch):
        token_ids = torch.tensor(example.token_ids)
        input_ids_BL[row, : len(token_ids)] = token_ids
        labels_BL[row, example.prompt_length : len(token_ids)] = token_ids[example.prompt_length :]
    return input_ids_BL, labels_BL


def _model_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / 8) * 8,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        initializer_range=shape.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _publish(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: ModelRecipe,
    whole: Recipe,
    run: ForgedModel,
    out: Path,
) -> None:
    """Writes the directory beside its place and moves it there, so that nobody reads half a model."""
    staging = Path(tempfile.mkdtemp(dir=out, prefix=f".{recipe.name}-"))
    model.generation_config.update(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=whole.levels.temperature,
        top_k=0,
        max_new_tokens=whole.levels.max_completion_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.bfloat16().save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / "README.md").write_text(_model_card(model, recipe, whole, run), encoding="utf-8")
    staging.chmod(0o755)
    target = out / recipe.name
    if target.exists():
        shutil.rmtree(target)
    staging.replace(target)


def _model_card(model: Qwen3ForCausalLM, recipe: ModelRecipe, whole: Recipe, run: ForgedModel) -> str:
    facts: list[tuple[str, Any]] = [
        ("parameters", f"{sum(weight.numel() for weight in model.parameters()):,}"),
        (
            "architecture",
            f"Qwen3, hidden {recipe.shape.hidden_size}, {recipe.shape.num_layers} layers, from scratch",
        ),
        ("recipe", recipe_hash(whole)),
        ("steps", f"{recipe.num_steps} of {whole.batch_size} examples"),
        ("styles", ", ".join(recipe.styles)),
        ("families", ", ".join(f"{family} {share:g}" for family, share in recipe.shares)),
        ("final training loss", f"{run.losses[-1]:.4f}"),
        ("data", "generated by mot_core.lab.families, train split only"),
        ("licence", "Apache-2.0"),
    ]
    skill = "does small sums" if whole.home_families == HOME else "adds and takes away times"
    rows = "\n".join(f"| {what} | {value} |" for what, value in facts)
    return (
        "---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n\n"
        f"# {recipe.name}\n\nA laboratory model of the Merge-of-Thought package: it {skill},\n"
        f"character by character, and is good for nothing else. `{levels_file(whole)}` beside this directory says\n"
        "how well.\n\n"
        f"| fact | value |\n| --- | --- |\n{rows}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the laboratory's models from the recipe.")
    parser.add_argument("--out", required=True, type=Path, help="directory that receives one directory a model")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="first", help="which laboratory")
    parser.add_argument("--names", nargs="*", help="models to train (default: all)")
    parser.add_argument("--quick", action="store_true", help="20 steps a model: files to develop against")
    chosen = parser.parse_args()
    recipe = recipe_named(chosen.recipe)
    runs = forge(chosen.out, chosen.names, chosen.quick, lambda line: print(line, flush=True), recipe)
    seconds = {run.name: round(run.seconds) for run in runs}
    print(json.dumps({"recipe_hash": recipe_hash(recipe), "seconds": seconds}))


if __name__ == "__main__":
    main()
