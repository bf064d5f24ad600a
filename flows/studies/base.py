"""A study: a question about the method, answered by the cells of a small grid of experiments.

A study is a function from a base experiment and a few options to cells, and from the cells' tables to one figure, one table
and one paragraph. Options and base of each size (smoke, lab, full, paper, …) stand in `deployments/studies/NAME.yaml`.
Invariant: cells are experiments like any other, so a study costs only the steps that no run in the store has done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mot_core.analysis.outcomes import Outcomes
from mot_core.errors import SpecError
from mot_core.identity import fingerprint
from mot_core.spec import Experiment, Scalar, Seed, Spec, nearest
from mot_core.spec_files import load_spec, parse_yaml, spec_from_document
from mot_core.steps import Step

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from flows.experiment import Outline

PATH_BUDGET = ["matched_path"]
"""The budgets of a study that compares along one path only: what a base has beside it would be computed for nothing."""


class Options(Spec):
    """What every study lets a size choose; each adds its own grid."""

    training_seeds: tuple[Seed, ...] = Field((1, 2), min_length=1)


@dataclass(frozen=True)
class Cell:
    """One experiment of a study. `name` is unique in it and names the cell's directory; coordinates become columns."""

    name: str
    spec: Experiment
    coordinates: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A cell with its graph: the nodes that results are read from."""

    cell: Cell
    outline: Outline


@dataclass(frozen=True)
class Setup:
    """What a study starts from: its size's base experiment, with the size's training seeds, and its options."""

    size: str
    base: Experiment
    options: Any
    store: str = ""
    """The store's directory, for cells whose models are what an earlier phase has made."""

    @property
    def label(self) -> str:
        """The size as a part of a run's name; of one that is a file, the base's name."""
        return self.size if self.size.isidentifier() else self.base.name


@dataclass(frozen=True)
class Probe:
    """A step beside the experiments (confidence, landscape, …), with the coordinates of what it measures."""

    step: Step
    coordinates: Mapping[str, Scalar]


@dataclass
class Findings:
    """Everything that a study's figure, table and text are made of."""

    setup: Setup
    outcomes: Outcomes
    planned: dict[str, Planned] = field(default_factory=dict)
    """The cells whose outcomes are there, with their graphs."""
    probes: list[tuple[Probe, str]] = field(default_factory=list)
    """Each probe, and the directory in which its published step lies."""


Phase = Callable[[Setup, Findings], Sequence[Cell]]
"""The cells of one phase, from what earlier phases have found."""


def no_probes(setup: Setup, planned: Sequence[Planned]) -> list[Probe]:
    """Of a study that measures nothing beside its experiments."""
    return []


@dataclass(frozen=True)
class Study:
    """One study. `phases` run one after the other, the cells of each together."""

    name: str
    claim: str
    question: str
    options: type[Options]
    phases: tuple[Phase, ...]
    table: Callable[[Findings], pd.DataFrame]
    figure: Callable[[Findings], Figure]
    text: Callable[[Findings], str]
    probes: Callable[[Setup, Sequence[Planned]], list[Probe]] = no_probes


class Size(Spec):
    """One size of a study, as its YAML has it; `like: NAME` there takes the fields that are not given from another size."""

    base: str = Field(description="a preset or file, NAME:VARIANT for one of its variants")
    set: tuple[str, ...] = Field((), description="overrides of the base, dotted.key=value")
    options: dict[str, Any] = Field({}, description="of the study")


def study_sizes(name: str) -> dict[str, Size]:
    """A study's sizes by name; none of a study that ships without a file of them."""
    path = resources.files("deployments") / "studies" / f"{name}.yaml"
    if not path.is_file():
        return {}
    document = parse_yaml(f"study {name}", path.read_text(encoding="utf-8"))
    sizes: dict[str, Size] = {}
    for size, fields in document.items():
        own = dict(fields)
        like = own.pop("like", None)
        if like is not None:
            if like not in sizes:
                raise SpecError(f"study {name}, size {size}: like: {like!r} is no size above it ({', '.join(sizes)})")
            other = sizes[like].model_dump(mode="json")
            own = {**other, **own, "options": {**other["options"], **own.get("options", {})}}
        sizes[size] = spec_from_document(own, f"study {name}, size {size}", Size)
    return sizes


def setup_of(study: Study, size: str, overrides: Sequence[str] = (), store: str = "") -> Setup:
    """A study's base experiment and options at a size; `overrides` (`base.dotted.key=value`, `options.key=value`) on top.
    A study without sizes of its own takes a preset or file as its size.

    Raises:
        SpecError: a size or field that is not there, or a spec that contradicts itself.
    """
    sizes = study_sizes(study.name)
    if size not in sizes and sizes:
        raise SpecError(f"study {study.name} has no size {size!r}; {nearest(size, sizes)}it has {', '.join(sizes)}")
    chosen = sizes[size] if sizes else Size(base=size)
    of_base: list[str] = []
    of_options: list[str] = []
    for override in overrides:
        place, _, rest = override.partition(".")
        if place not in ("base", "options") or not rest:
            raise SpecError(
                f"study {study.name}: --set {override!r}: expected base.FIELD=VALUE (of the experiments) or "
                "options.FIELD=VALUE (of the study)"
            )
        if place == "base" and rest.partition("=")[0].partition(".")[0] == "training_seeds":
            raise SpecError(f"study {study.name}: --set {override!r}: the seeds are options.training_seeds")
        (of_base if place == "base" else of_options).append(rest)
    document: dict[str, Any] = dict(chosen.options)
    for override in of_options:
        key, _, value = override.partition("=")
        document[key] = parse_yaml(f"--set options.{override}", f"value: {value}")["value"]
    options = spec_from_document(document, f"study {study.name}, size {size}, options", study.options)
    seeds = f"training_seeds={list(options.training_seeds)}"
    base = load_spec(chosen.base, [*chosen.set, seeds, *of_base])
    return Setup(size, base, options, store)


def check_reference(reference: str, names: Collection[str], what: str) -> None:
    """Raise `ValueError` unless what others are compared with is among them; for validators of options."""
    if reference not in names:
        raise ValueError(f"reference {reference!r} is none of {what}: {', '.join(names)}")


def study_identity(study: Study, setup: Setup) -> str:
    """The hash of what a study compares: its name, size, base and options."""
    return fingerprint([study.name, setup.size, setup.base.identity, setup.options.model_dump(mode="json")])


def with_fields(spec: Experiment, name: str, **fields: Any) -> Experiment:
    """An experiment with other fields, checked as a whole; a mapping changes the fields that it names and keeps the rest.

    Raises:
        SpecError: what came out contradicts itself.
    """
    document = spec.model_dump(mode="json")
    for key, value in fields.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), dict):
            document[key] = {**document[key], **value}
        else:
            document[key] = value
    document["name"] = name
    _follow_only_those_there(document)
    return spec_from_document(document, f"cell {name}", Experiment)


def _follow_only_those_there(document: dict[str, Any]) -> None:
    """Leave out of `evaluation.path.methods` what a cell does not compare; with none left, only last rounds are asked."""
    path = document["evaluation"]["path"]
    if path["methods"] is not None:
        path["methods"] = [name for name in path["methods"] if name in {one["name"] for one in document["methods"]}]
        if not path["methods"]:
            path |= {"methods": None, "rounds": "last", "every_steps": None}


def only_methods(spec: Experiment, names: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of `methods` with these names, in this order, as `with_fields` takes them.

    Raises:
        SpecError: the experiment has no such method.
    """
    known = {method.name: method for method in spec.methods}
    missing = [name for name in names if name not in known]
    if missing:
        raise SpecError(
            f"experiment {spec.name} has no method {', '.join(missing)}, which this study compares; it has "
            f"{', '.join(known)}: add it to the base's methods"
        )
    return [known[name].model_dump(mode="json") for name in names]
