"""What Prefect's form asks for: one flat, described, bounded model a deployment, and the specs that follow from it.

Flat, because Prefect's form handles unions and nested optionals badly (#18445, #12024, #12566): a field that may be absent
is of one plain type here, without null and without a default in the schema. Absent always means: as the preset has it.
Longer than most: every form with the spec that it makes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from flows.studies import STUDIES
from flows.studies.base import study_sizes
from mot_core.errors import SpecError
from mot_core.evaluation.catalogue import CATALOGUE
from mot_core.merging import RULES
from mot_core.nightly.spec import Nightly, load_nightly
from mot_core.spec import Experiment, Teacher, nearest
from mot_core.spec_files import load_specs, overridden, preset_names, spec_from_document, variant_names

Type = TypeVar("Type")


class _ShownAlone:
    """Beside `X | None`: the schema shows X. (A union with a hidden None would say of a wrong value that None is expected.)"""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        [shown] = [part for part in handler(schema)["anyOf"] if part != {"type": "null"}]
        return dict(shown)


Maybe = Annotated[Type | None, _ShownAlone()]
"""May be left empty in the form, and is None then."""


def _without_default(schema: dict[str, Any]) -> None:
    """A default of null would be shown as a value that the field's type refuses."""
    schema.pop("default", None)


def optional(title: str, description: str) -> Any:
    """A field that may be left empty; its type carries its bounds."""
    return Field(None, title=title, description=description, json_schema_extra=_without_default)


ModelName = Annotated[str, Field(min_length=1, max_length=500)]


class Choice:
    """Beside `str`: one of these names, a select in the form."""

    def __init__(self, names: Iterable[str], what: str) -> None:
        self.names, self.what = tuple(names), what

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names)}

    def _check(self, name: str) -> str:
        if name not in self.names:
            raise ValueError(f"no {self.what} {name!r}; {nearest(name, self.names)}known: {', '.join(self.names)}")
        return name


@functools.cache
def experiment_names() -> tuple[str, ...]:
    """Every experiment that the shipped presets hold, `NAME` or `NAME:VARIANT`, the laboratory's first."""
    names = [f"{name}:{variant}" if variant else name for name in preset_names() for variant in variant_names(name)]
    return tuple(sorted(names, key=lambda name: (name not in ("lab", "smoke"), name)))


@functools.cache
def registered_teachers() -> dict[str, Teacher]:
    """The teachers of all shipped presets by name; of two that share a name, that of the first preset."""
    found: dict[str, Teacher] = {}
    for name in experiment_names():
        for spec in load_specs(name):
            for teacher in spec.teachers:
                found.setdefault(teacher.name, teacher)
    return found


@functools.cache
def shipped_key_servers() -> tuple[tuple[str, str], ...]:
    """Which variable's key the shipped presets send where."""
    endpoints = [teacher.endpoint for teacher in registered_teachers().values() if teacher.endpoint is not None]
    return tuple((one.api_key_env, one.base_url) for one in endpoints if one.api_key_env is not None)


def _lines(value: Any) -> Any:
    """Lines of one text or of several (an item of the form takes many); empty ones and comments left out."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    lines = [line for text in texts for line in (text.splitlines() if isinstance(text, str) else [text])]
    return [line for line in lines if not isinstance(line, str) or (line.strip() and not line.strip().startswith("#"))]


SIZES = dict.fromkeys(size for name in STUDIES for size in study_sizes(name))
Rule = Annotated[str, Choice(sorted(RULES), "merge rule")]
Preset = Annotated[str, Choice(experiment_names(), "preset")]
TeacherName = Annotated[str, Choice(registered_teachers(), "teacher")]
StudyName = Annotated[str, Choice(STUDIES, "study")]
StudySize = Annotated[str, Choice(SIZES, "size")]
BenchmarkName = Annotated[str, Choice(CATALOGUE, "benchmark")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Overrides = Annotated[list[Annotated[str, Field(max_length=2000)]], BeforeValidator(_lines), Field(max_length=100)]
OVERRIDES = "any other field of the spec, a dotted key=value a line, e.g. generation.seed=7"


class Parameters(BaseModel):
    """Base of all: unknown names are refused, and nothing is changed after it was given."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class ExperimentParameters(Parameters):
    """One experiment: a preset, and what to change of it. A field left empty is as the preset has it."""

    preset: Preset = Field("lab", title="Preset", description="the experiment to start from (docs/presets.md)")
    teachers: list[TeacherName] = Field(
        [], title="Teachers", max_length=32, json_schema_extra={"uniqueItems": True},
        description="none chosen: the preset's; one that the preset lacks is taken from the preset that has it",
    )  # fmt: skip
    student: Maybe[ModelName] = optional(
        "Student", "model that is distilled into: lab:NAME, a directory, or a hub id (owner/name)"
    )
    corpus: Maybe[Literal["matched", "per_teacher", "union", "size_matched"]] = optional(
        "Corpus", "which problems a teacher's corpus holds (docs/corpora.md); the paper's is matched"
    )
    num_rationales: Maybe[Count] = optional("Rationales", "of a teacher, at most")
    rounds: Maybe[Annotated[int, Field(ge=1, le=100)]] = optional("Rounds", "T, rounds of branches and merge")
    steps_per_round: Maybe[Count] = optional("Steps per round", "S, optimizer steps of a branch")
    merge_rule: Maybe[Rule] = optional("Merge rule", "how branches become the next student (docs/merging.md)")
    learning_rate: Maybe[Annotated[float, Field(gt=0.0, le=1.0)]] = optional(
        "Learning rate", "of every method that trains"
    )
    budget: Maybe[Literal["matched_path", "matched_compute", "both"]] = optional(
        "Budget", "equal steps along one path, equal steps in all, or both"
    )
    training_seeds: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(
        [], title="Training seeds", max_length=100, description="none given: the preset's"
    )
    overrides: Overrides = Field([], title="Overrides", description=OVERRIDES)


def experiment_of(parameters: ExperimentParameters) -> Experiment:
    """The experiment that a form asks for.

    Raises:
        SpecError: a spec that contradicts itself, or an override that names nothing.
    """
    [spec] = load_specs(parameters.preset)
    document = spec.model_dump(mode="json", exclude_none=True)
    _choose_teachers(document, parameters.teachers)
    if parameters.student is not None:
        name = parameters.student.rstrip("/").rpartition("/")[2].removeprefix("lab:")
        document["student"] = {"name": name[:64], "model": parameters.student}
    if parameters.learning_rate is not None:
        document["training"]["learning_rate"] = parameters.learning_rate
        for method in document["methods"]:
            method.pop("learning_rate", None)
            method.pop("learning_rate_scale", None)
    if parameters.budget is not None:
        both = ["matched_path", "matched_compute"]
        document["budgets"] = both if parameters.budget == "both" else [parameters.budget]
    if parameters.training_seeds:
        document["training_seeds"] = list(parameters.training_seeds)
    for place, value in (
        (("corpus", "mode"), parameters.corpus), (("corpus", "num_rationales"), parameters.num_rationales),
        (("rounds",), parameters.rounds), (("steps_per_round",), parameters.steps_per_round),
        (("merge", "rule"), parameters.merge_rule),
    ):  # fmt: skip
        if value is not None:
            *above, last = place
            functools.reduce(lambda part, key: part[key], above, document)[last] = value
    changed = spec_from_document(document, f"preset {parameters.preset}, with what the form gives", Experiment)
    return overridden(changed, list(parameters.overrides)) if parameters.overrides else changed


def _choose_teachers(document: dict[str, Any], names: Sequence[str]) -> None:
    """Put the chosen teachers in place of the preset's: its own as they are, others as they are registered."""
    if not names:
        return
    own = {teacher["name"]: teacher for teacher in document["teachers"]}
    registered = registered_teachers()
    document["teachers"] = [
        own.get(name) or registered[name].model_dump(mode="json", exclude_none=True) for name in names
    ]


class StudyParameters(Parameters):
    """One study of the paper's claims, at a size."""

    study: StudyName = Field("methods", title="Study", description="which question it asks: docs/studies.md")
    size: StudySize = Field(
        "lab", title="Size", description="smoke takes a minute and means nothing; lab minutes; paper needs GPUs"
    )
    overrides: Overrides = Field(
        [],
        title="Overrides",
        description="base.FIELD=value of the experiments, options.FIELD=value of the study, one a line",
    )


class GenerateParameters(Parameters):
    """The teachers' rationales of a preset and their verdicts, and nothing after them."""

    preset: Preset = Field("lab", title="Preset", description="whose problems and teachers")
    teachers: list[TeacherName] = Field(
        [],
        title="Teachers",
        max_length=32,
        json_schema_extra={"uniqueItems": True},
        description="none chosen: the preset's",
    )
    num_samples: Maybe[Annotated[int, Field(ge=1, le=1024)]] = optional("Samples", "rationales a problem and teacher")
    temperature: Maybe[Annotated[float, Field(ge=0.0, le=2.0)]] = optional(
        "Temperature", "of the sampling; 0 is greedy"
    )
    max_completion_tokens: Maybe[Annotated[int, Field(ge=1, le=262_144)]] = optional(
        "Completion tokens", "longer completions are cut"
    )
    overrides: Overrides = Field([], title="Overrides", description=OVERRIDES)


def generation_of(parameters: GenerateParameters) -> Experiment:
    """The experiment whose rationales are asked for.

    Raises:
        SpecError: as `experiment_of`.
    """
    given = {
        "generation.num_samples": parameters.num_samples, "generation.sampling.temperature": parameters.temperature,
        "generation.sampling.max_completion_tokens": parameters.max_completion_tokens,
    }  # fmt: skip
    lines = [f"{place}={value}" for place, value in given.items() if value is not None]
    return experiment_of(
        ExperimentParameters(
            preset=parameters.preset, teachers=parameters.teachers, overrides=[*lines, *parameters.overrides]
        )
    )


class EvaluateParameters(Parameters):
    """One model on benchmarks: those of a preset, or named ones."""

    model: ModelName = Field(title="Model", description="lab:NAME, a directory, or a hub id (owner/name)")
    preset: Preset = Field("lab", title="Preset", description="how it is asked, and the benchmarks if none is named")
    benchmarks: list[BenchmarkName] = Field(
        [], title="Benchmarks", max_length=32, json_schema_extra={"uniqueItems": True},
        description="of the catalogue (mot benchmarks); none chosen: the preset's",
    )  # fmt: skip
    overrides: Overrides = Field([], title="Overrides", description=OVERRIDES)


def evaluation_of(parameters: EvaluateParameters) -> Experiment:
    """The experiment that asks the model and trains nothing.

    Raises:
        SpecError: as `experiment_of`.
    """
    spec = experiment_of(
        ExperimentParameters(preset=parameters.preset, student=parameters.model, overrides=parameters.overrides)
    )
    document = spec.model_dump(mode="json", exclude_none=True)
    document["methods"] = [{"name": "base"}]
    document["training_seeds"] = document["training_seeds"][:1]
    document["budgets"] = document["budgets"][:1]
    document["evaluation"]["path"] = {"rounds": "last"}
    if parameters.benchmarks:
        document["evaluation"]["benchmarks"] = [{"benchmark": name} for name in parameters.benchmarks]
    return spec_from_document(document, f"preset {parameters.preset}, asked of {parameters.model}", Experiment)


class MergeParameters(Parameters):
    """A merge of checkpoints by itself, into the store's folder `merged`."""

    models: list[ModelName] = Field(
        title="Models", description="directories or hub ids, of one architecture", min_length=1, max_length=64
    )
    name: str = Field(
        title="Name", description="of the folder that the merged model goes to", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=64,
    )  # fmt: skip
    rule: Rule = Field("mean", title="Rule", description="docs/merging.md")
    weights: list[Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        [], title="Weights", max_length=64, description="a model's share; none: equal shares"
    )
    start: Maybe[ModelName] = optional("Start", "what the branches started from; rules on task vectors need it")


def recipe_of(parameters: MergeParameters) -> dict[str, Any]:
    """What `mot merge` reads (docs/merging.md).

    Raises:
        SpecError: weights for another number of models.
    """
    weights, models = list(parameters.weights), list(parameters.models)
    if weights and len(weights) != len(models):
        raise SpecError(f"merge: {len(weights)} weights for {len(models)} models; give one a model, or none")
    shares = [{"weight": weight} for weight in weights] or [{} for _ in models]
    recipe: dict[str, Any] = {
        "rule": parameters.rule,
        "branches": [{"model": model, **share} for model, share in zip(models, shares, strict=True)],
    }
    return recipe if parameters.start is None else {**recipe, "base": parameters.start}


class NightlyParameters(Parameters):
    """One night: what has never run, then where intervals still overlap, within a budget."""

    plan: str = Field(
        "lab", title="Plan", description="of deployments/nightly, or a YAML file (docs/nightly.md)", max_length=500
    )
    minutes: Maybe[Annotated[float, Field(gt=0.0, le=1440.0)]] = optional(
        "Minutes", "the most that the night may take; empty: the plan's"
    )
    max_completion_tokens: Maybe[Annotated[int, Field(ge=1, le=10**12)]] = optional(
        "Tokens", "the most that models may write; empty: the plan's"
    )


def nightly_of(parameters: NightlyParameters) -> Nightly:
    """The nightly that a form asks for.

    Raises:
        SpecError: no such plan, or one that contradicts itself.
    """
    given = {"minutes": parameters.minutes, "max_completion_tokens": parameters.max_completion_tokens}
    return load_nightly(
        parameters.plan, [f"budget.{name}={value}" for name, value in given.items() if value is not None]
    )
