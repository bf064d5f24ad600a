"""What `mot merge` is asked for: a recipe of its own form, or mergekit's YAML, read into the same.

    rule: ties                            # a registered rule, or package.module:function
    base: ./student                       # what the branches began at; rules over updates need it
    branches:
      - {name: ann, model: ./ann, weight: 0.5}
      - owner/bob                         # a path, a hub id or lab:NAME; weights default to 1/K
    parameters: {density: 0.2}
    dtype: bfloat16                       # absent: the branches' own

Invariant: importing this module loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mot_core.errors import SpecError
from mot_core.spec import Name, Scalar, Seed, Spec
from mot_core.spec_files import parse_yaml, spec_from_document

RECORD = "merge.json"
"""A merged directory's file that says what it was merged from; it is there once the whole directory is."""


class Source(Spec):
    """One branch."""

    name: Name
    model: str = Field(min_length=1, description="a directory (of a model or a LoRA adapter), a hub id, or lab:NAME")
    revision: str | None = None
    weight: float | None = Field(None, description="absent: 1/K")


class Recipe(Spec):
    """A merge of any checkpoints."""

    rule: str = "mean"
    branches: tuple[Source, ...] = Field(min_length=1)
    base: str | None = Field(None, description="the start of the branches")
    base_revision: str | None = None
    parameters: dict[str, Scalar] = Field({}, description="of the rule")
    seed: Seed = Field(0, description="of rules that draw at random")
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = None
    lora: Literal["full", "concatenate"] = Field("full", description="adapters into a whole model, or into one adapter")
    tokenizer: str | None = Field(None, description="whose tokenizer is carried over: 'base' or a branch's name")
    previous: str | None = Field(None, description="an earlier output, whose rule's state is carried on")
    max_shard_gb: float = Field(5.0, gt=0.0)

    @field_validator("branches", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A bare model gets its last part as its name, made unique by its place."""
        if not isinstance(given, (list, tuple)):
            return given
        found: list[Any] = []
        for place, item in enumerate(given, 1):
            fields = {"model": item} if isinstance(item, str) else item
            if isinstance(fields, Mapping) and "name" not in fields and isinstance(fields.get("model"), str):
                fields = {"name": branch_name(fields["model"], place, found), **fields}
            found.append(fields)
        return found

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [source.name for source in self.branches]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"branches: the name {repeated[0]!r} is given twice")
        given = [source.weight is not None for source in self.branches]
        if any(given) and not all(given):
            raise ValueError("branches: give every branch a weight, or none")
        if self.tokenizer is not None and self.tokenizer not in (*names, "base"):
            raise ValueError(f"tokenizer is {self.tokenizer!r}, expected 'base' or one of {names}")
        if self.tokenizer == "base" and self.base is None:
            raise ValueError("tokenizer is 'base', but there is no base")
        return self

    @property
    def weights(self) -> list[float]:
        return [1.0 / len(self.branches) if source.weight is None else source.weight for source in self.branches]


def branch_name(model: str, place: int, taken: list[Any]) -> str:
    """A name for a branch that was given none: the last part of its model, with its place where that is taken."""
    last = model.rstrip("/").rpartition("/")[2].removeprefix("lab:")
    name = (
        "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last).lstrip("._-")[:60] or "branch"
    )
    used = {item.get("name") for item in taken if isinstance(item, Mapping)}
    return f"{name}-{place}" if name in used else name


def load_recipe(path: Path) -> tuple[Recipe, Any]:
    """A recipe, and for mergekit's YAML its settings tensor by tensor (else None).

    Raises:
        SpecError: a file that cannot be read, or whose fields are wrong.
    """
    from mot_core.merging.mergekit import is_mergekit, read_mergekit

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as a merge recipe: {error}") from None
    document = parse_yaml(str(path), text)
    if is_mergekit(document):
        return read_mergekit(document, str(path))
    return spec_from_document(document, str(path), Recipe), None


def is_merged(recipe: Mapping[str, Any], out_dir: Path) -> bool:
    """Whether a directory holds the merge of this recipe already.

    Raises:
        SpecError: it is no recipe.
    """
    asked = spec_from_document(dict(recipe), "merge", Recipe).model_dump(mode="json")
    try:
        return bool(json.loads((out_dir / RECORD).read_text())["recipe"] == asked)
    except (OSError, ValueError, KeyError, TypeError):
        return False
