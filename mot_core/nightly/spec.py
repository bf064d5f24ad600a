"""What a nightly ablation is: a base experiment, its cells, a canary and a budget.

A cell is the base with some fields changed. Invariant: a cell is known by its experiment without training seeds, since
seeds are what a night adds to it; two cells of one nightly are never the same experiment.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml
from pydantic import Field, model_validator

from mot_core.errors import SpecError
from mot_core.identity import fingerprint
from mot_core.spec import Experiment, Name, Spec, nearest
from mot_core.spec_files import load_document, load_spec

FOLDER = "nightly"


class Canary(Spec):
    """A tiny experiment that every night computes from nothing."""

    base: str = Field("smoke", description="a preset or file, NAME:VARIANT for one of its variants")
    set: tuple[str, ...] = Field((), description="overrides of it, dotted.key=value")


class Budget(Spec):
    """What a night may take, the canary included."""

    minutes: float = Field(480.0, gt=0, description="of wall clock")
    max_completion_tokens: int | None = Field(None, ge=1, description="sampled by teachers and students; absent: any")


class Reference(Spec):
    """What decides a cell: one method against its rivals, on final students and test problems."""

    method: str = Field("mot", description="as tables name it")
    against: tuple[str, ...] | None = Field(
        None, min_length=1, description="rivals as tables name them (std/TEACHER, mtd, …); absent: all but base"
    )
    benchmarks: tuple[str, ...] | None = Field(None, min_length=1, description="absent: those of role home")

    @model_validator(mode="after")
    def _has_rivals(self) -> Reference:
        if self.method in (self.against or ()):
            raise ValueError(f"against names {self.method!r}, the method itself")
        return self


class Nightly(Spec):
    """A nightly ablation: what `mot nightly` works through, night after night."""

    name: Name
    description: str = ""
    base: str = Field(description="a preset or file, NAME:VARIANT for one of its variants")
    set: tuple[str, ...] = Field((), description="overrides of the base in every cell, dotted.key=value")
    grid: dict[str, tuple[Any, ...]] = Field({}, description="field → values; every combination is a cell")
    cells: tuple[tuple[str, ...], ...] = Field((), description="further cells, each a list of overrides")
    reference: Reference = Reference()
    max_seeds: int = Field(5, ge=1, description="to which an undecided cell's training seeds grow")
    budget: Budget = Budget()
    canary: Canary = Canary()

    @model_validator(mode="after")
    def _consistent(self) -> Nightly:
        for field, values in self.grid.items():
            texts = [yaml_text(value) for value in values]
            if not texts or len(set(texts)) != len(texts):
                raise ValueError(f"grid.{field}: expected values, each once; got [{', '.join(texts)}]")
        return self

    @property
    def identity(self) -> str:
        return fingerprint(self.model_dump(mode="json", exclude={"description"}))


@dataclass(frozen=True)
class Cell:
    """One experiment of a nightly. `values` are what it changes: `(field, value as YAML)`."""

    name: str
    values: tuple[tuple[str, str], ...]
    spec: Experiment

    @cached_property
    def key(self) -> str:
        """The cell's own hash, whatever its training seeds."""
        return fingerprint(self.spec.model_dump(mode="json", exclude={"description", "training_seeds"}))

    def with_seeds(self, num_seeds: int) -> Experiment:
        """The experiment with its first seeds: the spec's own, then the numbers after the largest of them."""
        own = self.spec.training_seeds
        more = range(max(own) + 1, max(own) + 1 + num_seeds - len(own))
        return self.spec.model_copy(update={"training_seeds": (*own, *more)})

    def seed_counts(self, max_seeds: int) -> range:
        """The numbers of seeds that the cell may have, from its spec's own on."""
        own = len(self.spec.training_seeds)
        return range(own, max(own, max_seeds) + 1)


def load_nightly(name_or_file: str, overrides: list[str] | None = None) -> Nightly:
    """A nightly by its name in `deployments/nightly`, or from a YAML file.

    Raises:
        SpecError: as `mot_core.spec_files.load_spec`.
    """
    return load_document(Nightly, name_or_file, FOLDER, overrides)


def cells_of(nightly: Nightly) -> tuple[Cell, ...]:
    """The cells, the grid's combinations first, the last field varying fastest.

    Raises:
        SpecError: a cell that is no experiment, two that are the same, or one without the reference's methods.
    """
    cells = tuple(_cell(nightly, overrides) for overrides in _combinations(nightly))
    by_key: dict[str, Cell] = {}
    for cell in cells:
        other = by_key.setdefault(cell.key, cell)
        if other is not cell:
            raise SpecError(
                f"nightly {nightly.name}: cells {other.name!r} and {cell.name!r} are the same experiment but for training "
                "seeds, which nights add by themselves; leave one out"
            )
        _check_reference(nightly, cell)
    return cells


def canary_of(nightly: Nightly) -> Experiment:
    """The canary's experiment, under a name of its own."""
    spec = load_spec(nightly.canary.base, list(nightly.canary.set))
    return spec.model_copy(update={"name": f"{spec.name[:57]}-canary"})


def yaml_text(value: Any) -> str:
    """A value on one line, as an override has it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _combinations(nightly: Nightly) -> Iterator[tuple[str, ...]]:
    if nightly.grid or not nightly.cells:
        axes = [[f"{field}={yaml_text(value)}" for value in values] for field, values in nightly.grid.items()]
        yield from itertools.product(*axes)
    yield from nightly.cells


def _cell(nightly: Nightly, overrides: tuple[str, ...]) -> Cell:
    spec = load_spec(nightly.base, [*nightly.set, *overrides])
    values = tuple((field, value) for field, _, value in (override.partition("=") for override in overrides))
    return Cell(", ".join(overrides) or spec.name, values, spec)


def _check_reference(nightly: Nightly, cell: Cell) -> None:
    reference, known = nightly.reference, [method.name for method in cell.spec.methods]
    for name in (reference.method, *(reference.against or ())):
        if name.partition("/")[0] not in known:
            raise SpecError(
                f"nightly {nightly.name}, cell {cell.name!r}: reference names {name!r}; {nearest(name, known)}"
                f"the cell's methods are {', '.join(known)}"
            )
    benchmarks = [benchmark.name for benchmark in cell.spec.evaluation.benchmarks]
    for name in reference.benchmarks or ():
        if name not in benchmarks:
            raise SpecError(
                f"nightly {nightly.name}, cell {cell.name!r}: reference.benchmarks names {name!r}; "
                f"{nearest(name, benchmarks)}the cell's are {', '.join(benchmarks)}"
            )
