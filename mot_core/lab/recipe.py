"""Every number that the embedded models depend on, and the hash that names them.

Frozen before any merging result was looked at: choosing models by how well a method does on them
would decide the experiments in advance. Invariant: two recipes with one hash forge the same models (on one
kind of machine and torch version); threads, paths and log intervals are no part of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from mot_core.errors import SpecError
from mot_core.lab.families import FAMILIES, LATER_PRIMERS, PANEL, PRIMERS
from mot_core.lab.styles import CLOCK_STYLES, STYLES

# Raise it when families, styles or the tokenizer change what a model is trained on.
FORGE_VERSION = 1


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model's size; embeddings are tied, the vocabulary is padded to a multiple of 8."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    max_positions: int = 256
    # Transformers' own 0.02 suits wide models: at hidden 128 a teacher's loss after 300 steps was 1.03,
    # with 0.06 it was 0.66.
    initializer_range: float = 0.06


@dataclass(frozen=True)
class ModelRecipe:
    """One model: its shape, the styles it reasons in, how often it meets each family (shares sum to 1)."""

    name: str
    shape: Shape
    styles: tuple[str, ...]
    shares: tuple[tuple[str, float], ...]
    num_steps: int
    seed: int


@dataclass(frozen=True)
class LevelsRecipe:
    """How the levels of the forged models are measured."""

    temperature: float = 0.7
    num_home_problems: int = 500
    num_panel_problems: int = 100
    max_completion_tokens: int = 96
    seed: int = 77


@dataclass(frozen=True)
class Recipe:
    """The whole forge: optimizer, schedule, models, measurement."""

    models: tuple[ModelRecipe, ...]
    batch_size: int = 64
    # Batches are cut from a window of this many, sorted by length, so that little padding is computed.
    batches_a_window: int = 16
    learning_rate: float = 3e-3
    learning_rate_floor: float = 1e-4
    warmup_steps: int = 60
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    levels: LevelsRecipe = LevelsRecipe()
    forge_version: int = FORGE_VERSION

    @property
    def home_families(self) -> tuple[str, ...]:
        """The families that teachers of this recipe know: all that its models meet but primers and the panel."""
        met = {family for model in self.models for family, _ in model.shares}
        return tuple(family for family in FAMILIES if family in met - {*PRIMERS, *LATER_PRIMERS, *PANEL})

    def model(self, name: str) -> ModelRecipe:
        """The recipe of one model; SpecError for a name the recipe does not have."""
        for candidate in self.models:
            if candidate.name == name:
                return candidate
        known = ", ".join(model.name for model in self.models)
        raise SpecError(f"the recipe has no model {name!r}: expected one of {known}")


SMALL = Shape(hidden_size=128, num_layers=4, intermediate_size=384)
TINY = Shape(hidden_size=96, num_layers=3, intermediate_size=288)

# Teachers know the home families and nothing else; the shares give each another strong side.
_SUMS_SIDE = (("sums", 0.50), ("products", 0.35), ("short-sums", 0.075), ("short-products", 0.075))
_PRODUCTS_SIDE = (("sums", 0.35), ("products", 0.50), ("short-sums", 0.075), ("short-products", 0.075))
# A student has met easy home problems in every style, few long ones, and the panel: the larger one needs
# fewer long problems to reach the same level, and more words before it can reverse and count.
_SMALL_STUDENT = (
    ("sums", 0.05),
    ("products", 0.045),
    ("short-sums", 0.22),
    ("short-products", 0.17),
    ("reverse", 0.18),
    ("sort", 0.11),
    ("count", 0.165),
    ("largest", 0.06),
)
_TINY_STUDENT = (
    ("sums", 0.10),
    ("products", 0.08),
    ("short-sums", 0.25),
    ("short-products", 0.20),
    ("reverse", 0.10),
    ("sort", 0.11),
    ("count", 0.10),
    ("largest", 0.06),
)

DEFAULT_RECIPE = Recipe(
    models=(
        ModelRecipe("running-total", SMALL, ("running-total",), _PRODUCTS_SIDE, 1800, 11),
        ModelRecipe("gains-and-losses", SMALL, ("gains-and-losses",), _PRODUCTS_SIDE, 2200, 12),
        ModelRecipe("tens-and-ones", SMALL, ("tens-and-ones",), _SUMS_SIDE, 1800, 13),
        ModelRecipe("student-small", SMALL, STYLES, _SMALL_STUDENT, 3600, 21),
        ModelRecipe("student-tiny", TINY, STYLES, _TINY_STUDENT, 4500, 22),
    )
)


# The later laboratory: one narrow family, and models that came after the methods were first compared on the models above.
_CLOCK = (("clock", 0.85), ("short-clock", 0.15))
_SMALL_CLOCK_STUDENT = (
    ("clock", 0.12),
    ("short-clock", 0.36),
    ("reverse", 0.20),
    ("sort", 0.10),
    ("count", 0.17),
    ("largest", 0.05),
)

LATER_RECIPE = Recipe(
    models=(
        ModelRecipe("clock-running", SMALL, ("clock-running",), _CLOCK, 1200, 31),
        ModelRecipe("hours-and-minutes", SMALL, ("hours-and-minutes",), _CLOCK, 1200, 32),
        ModelRecipe("all-minutes", SMALL, ("all-minutes",), _CLOCK, 1800, 33),
        ModelRecipe("student-clock", SMALL, CLOCK_STYLES, _SMALL_CLOCK_STUDENT, 2600, 41),
    )
)

RECIPES: dict[str, Recipe] = {"first": DEFAULT_RECIPE, "later": LATER_RECIPE}


def recipe_named(name: str) -> Recipe:
    """One of `RECIPES`; SpecError for another name."""
    if name not in RECIPES:
        raise SpecError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]


def quick_recipe(recipe: Recipe = DEFAULT_RECIPE, num_steps: int = 20) -> Recipe:
    """The same models with a few steps and a small measurement: files, not models that can do sums."""
    return replace(
        recipe,
        models=tuple(replace(model, num_steps=num_steps) for model in recipe.models),
        warmup_steps=5,
        levels=replace(recipe.levels, num_home_problems=16, num_panel_problems=8),
    )


def recipe_hash(recipe: Recipe = DEFAULT_RECIPE) -> str:
    """16 hex digits of SHA-256 over the recipe's canonical JSON."""
    canonical = json.dumps(asdict(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
