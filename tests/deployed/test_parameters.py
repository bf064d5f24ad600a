"""The forms: the schema that Prefect's page draws them from, and the specs that follow from what is filled in."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from flows.deployed import entrypoints
from flows.deployed.parameters import (
    EvaluateParameters,
    ExperimentParameters,
    GenerateParameters,
    MergeParameters,
    StudyParameters,
    evaluation_of,
    experiment_names,
    experiment_of,
    generation_of,
    recipe_of,
    registered_teachers,
)
from flows.studies import STUDIES, study_named
from flows.studies.base import setup_of
from mot_core.errors import SpecError
from mot_core.evaluation.catalogue import CATALOGUE
from mot_core.merging import RULES
from mot_core.spec import Experiment
from mot_core.spec_files import load_spec, preset_names

FORMS = {
    "experiment": ExperimentParameters, "study": StudyParameters, "generate": GenerateParameters,
    "evaluate": EvaluateParameters, "merge": MergeParameters,
}  # fmt: skip


def schema_of(name: str) -> dict[str, Any]:
    """The schema that the deployment of a flow carries."""
    return parameter_schema(getattr(entrypoints, name)).model_dump_for_openapi()


def fields_of(name: str) -> dict[str, Any]:
    """The fields of a flow's one parameter."""
    schema = schema_of(name)
    assert list(schema["properties"]) == schema["required"] == ["parameters"]
    reference = schema["properties"]["parameters"]["$ref"]
    [(definition, form)] = schema["definitions"].items()
    assert reference == f"#/definitions/{definition}" and form["type"] == "object"
    assert form["additionalProperties"] is False and form["description"]
    fields: dict[str, Any] = form["properties"]
    return fields


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_flat_and_every_field_is_named_described_and_bounded(name: str) -> None:
    fields = fields_of(name)
    assert list(fields) == list(FORMS[name].model_fields)  # the order of the page is that of the model
    for field, schema in fields.items():
        assert set(schema) <= {
            "type", "title", "description", "default", "enum", "items", "minimum", "maximum", "exclusiveMinimum",
            "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "pattern",
        }, field  # fmt: skip
        assert schema["title"] and schema["description"], field
        assert "default" not in schema or schema["default"] is not None, field
        assert_bounded(field, schema)
        if schema["type"] == "array":
            assert "maxItems" in schema, field
            assert_bounded(field, schema["items"])


def assert_bounded(field: str, schema: dict[str, Any]) -> None:
    """One plain type, and what it may be."""
    bound = {
        "string": {"enum", "maxLength"}, "integer": {"minimum"}, "number": {"minimum", "exclusiveMinimum"}, "array": {"maxItems"},
    }  # fmt: skip
    assert schema["type"] in bound, field
    assert bound[schema["type"]] & set(schema), field
    if schema["type"] in ("integer", "number"):
        assert "maximum" in schema, field


def test_the_experiments_form() -> None:
    fields = fields_of("experiment")
    kept = {
        name: {k: v for k, v in schema.items() if k not in ("title", "description")} for name, schema in fields.items()
    }
    assert kept == {
        "preset": {"type": "string", "default": "lab", "enum": list(experiment_names())},
        "teachers": {
            "type": "array", "default": [], "maxItems": 32, "uniqueItems": True,
            "items": {"type": "string", "enum": list(registered_teachers())},
        },
        "student": {"type": "string", "minLength": 1, "maxLength": 500},
        "corpus": {"type": "string", "enum": ["matched", "per_teacher", "union", "size_matched"]},
        "num_rationales": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "rounds": {"type": "integer", "minimum": 1, "maximum": 100},
        "steps_per_round": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "merge_rule": {"type": "string", "enum": sorted(RULES)},
        "learning_rate": {"type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0},
        "budget": {"type": "string", "enum": ["matched_path", "matched_compute", "both"]},
        "training_seeds": {
            "type": "array", "default": [], "maxItems": 100, "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        },
        "overrides": {"type": "array", "default": [], "maxItems": 100, "items": {"type": "string", "maxLength": 2000}},
    }  # fmt: skip


def test_what_can_be_chosen_is_what_there_is() -> None:
    assert {name.partition(":")[0] for name in experiment_names()} == set(preset_names())
    assert experiment_names()[:2] == ("lab", "smoke")
    lab = {teacher.name for teacher in load_spec("lab").teachers}
    assert lab <= set(registered_teachers())
    assert fields_of("study")["study"]["enum"] == list(STUDIES)
    assert fields_of("evaluate")["benchmarks"]["items"]["enum"] == list(CATALOGUE)
    assert fields_of("merge")["rule"]["enum"] == sorted(RULES)


def changes(given: Experiment, base: Experiment) -> dict[str, Any]:
    """The top-level fields in which a spec differs."""
    ours, theirs = given.model_dump(mode="json"), base.model_dump(mode="json")
    return {name: ours[name] for name in ours if ours[name] != theirs[name]}


def test_an_empty_form_is_the_preset() -> None:
    for name in experiment_names():
        assert experiment_of(ExperimentParameters(preset=name)) == load_spec(name)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("student", "lab:student-small", {"student.model": "lab:student-small", "student.name": "student-small"}),
        ("student", "/models/mine/", {"student.model": "/models/mine/", "student.name": "mine"}),
        ("corpus", "union", {"corpus.mode": "union"}),
        ("num_rationales", 12, {"corpus.num_rationales": 12}),
        ("rounds", 4, {"rounds": 4}),
        ("steps_per_round", 5, {"steps_per_round": 5}),
        ("merge_rule", "slerp", {"merge.rule": "slerp"}),
        ("learning_rate", 0.25, {"training.learning_rate": 0.25}),
        ("budget", "both", {"budgets": ["matched_path", "matched_compute"]}),
        ("budget", "matched_compute", {"budgets": ["matched_compute"]}),
        ("training_seeds", [3, 5], {"training_seeds": [3, 5]}),
        ("overrides", ["generation.seed=7"], {"generation.seed": 7}),
    ],
)  # fmt: skip
def test_a_field_of_the_form_changes_its_field_of_the_spec_alone(
    field: str, value: Any, expected: dict[str, Any]
) -> None:
    base = load_spec("smoke")
    spec = experiment_of(ExperimentParameters.model_validate({"preset": "smoke", field: value}))
    assert set(changes(spec, base)) == {place.partition(".")[0] for place in expected}
    document = spec.model_dump(mode="json")
    for place, wanted in expected.items():
        found: Any = document
        for key in place.split("."):
            found = found[key]
        assert found == wanted


def test_a_learning_rate_is_every_methods() -> None:
    spec = experiment_of(ExperimentParameters(preset="lab", learning_rate=0.25))
    assert {spec.learning_rate(name) for name in ("std", "mtd", "merge_once", "mot", "shuffled")} == {0.25}


def test_teachers_are_the_presets_own_or_those_of_the_preset_that_has_them() -> None:
    spec = experiment_of(ExperimentParameters(preset="smoke", teachers=["tens-and-ones", "gains-and-losses"]))
    assert [teacher.name for teacher in spec.teachers] == ["tens-and-ones", "gains-and-losses"]
    assert spec.teachers[0] == load_spec("smoke").teachers[1]
    assert spec.teachers[1] == load_spec("lab").teachers[1]


def test_overrides_come_last_and_one_item_may_hold_many_lines() -> None:
    text = "# mine\nrounds=3\n\ngeneration.seed=7"
    for given in (text, [text], ["rounds=3", "generation.seed=7"]):
        parameters = ExperimentParameters.model_validate({"preset": "smoke", "rounds": 2, "overrides": given})
        spec = experiment_of(parameters)
        assert (spec.rounds, spec.generation.seed) == (3, 7)


def test_generation_and_evaluation_are_experiments_too() -> None:
    asked = generation_of(GenerateParameters(preset="smoke", num_samples=3, temperature=0.5, max_completion_tokens=20))
    assert asked.generation.num_samples == 3
    assert asked.generation.sampling.temperature == 0.5
    assert asked.generation.sampling.max_completion_tokens == 20
    assert set(changes(asked, load_spec("smoke"))) == {"generation"}

    asked = evaluation_of(
        EvaluateParameters(model="lab:student-small", preset="smoke", benchmarks=["sums", "math-500"])
    )
    assert [method.name for method in asked.methods] == ["base"]
    assert asked.student.model == "lab:student-small"
    assert [one.name for one in asked.evaluation.benchmarks] == ["sums", "math-500"]
    as_preset = evaluation_of(EvaluateParameters(model="lab:student-tiny", preset="smoke"))
    assert as_preset.evaluation.benchmarks == load_spec("smoke").evaluation.benchmarks


def test_a_merge_is_a_recipe() -> None:
    assert recipe_of(MergeParameters(models=["a", "b"], name="ab")) == {
        "rule": "mean", "branches": [{"model": "a"}, {"model": "b"}],
    }  # fmt: skip
    given = MergeParameters(models=["a", "b"], name="ab", rule="task_arithmetic", weights=[0.25, 0.75], start="s")
    assert recipe_of(given) == {
        "rule": "task_arithmetic", "base": "s",
        "branches": [{"model": "a", "weight": 0.25}, {"model": "b", "weight": 0.75}],
    }  # fmt: skip
    with pytest.raises(SpecError, match="1 weights for 2 models"):
        recipe_of(MergeParameters(models=["a", "b"], name="ab", weights=[1.0]))


@pytest.mark.parametrize(
    ("form", "given", "says"),
    [
        (ExperimentParameters, {"preset": "smokey"}, r"preset\n.*no preset 'smokey'; .*known: lab, smoke"),
        (ExperimentParameters, {"teachers": ["nobody"]}, r"teachers.0\n.*no teacher 'nobody'; .*known: .*running-total"),
        (ExperimentParameters, {"merge_rule": "median"}, r"merge_rule\n.*known: .*slerp"),
        (ExperimentParameters, {"corpus": "all"}, r"corpus\n.*'matched', 'per_teacher', 'union' or 'size_matched'"),
        (ExperimentParameters, {"rounds": 101}, r"rounds\n.*less than or equal to 100"),
        (ExperimentParameters, {"learning_rate": float("nan")}, r"learning_rate\n.*finite number"),
        (ExperimentParameters, {"round": 2}, r"round\n.*Extra inputs are not permitted"),
        (StudyParameters, {"study": "method"}, r"study\n.*known: .*methods"),
        (StudyParameters, {"size": "huge"}, r"size\n.*known: .*smoke"),
        (EvaluateParameters, {"model": "m", "benchmarks": ["math"]}, r"benchmarks.0\n.*known: .*math-500"),
        (MergeParameters, {"models": ["a"], "name": "../up"}, r"name\n.*should match pattern"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_field_and_what_is_allowed(
    form: type[ExperimentParameters], given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){says}"):
        form.model_validate(given)


def test_a_size_that_the_study_lacks_and_an_override_that_names_nothing_are_refused() -> None:
    with pytest.raises(SpecError, match="study filters has no size 'smollm'; .*it has smoke"):
        setup_of(study_named("filters"), "smollm")
    with pytest.raises(SpecError, match="batch_sise"):
        experiment_of(ExperimentParameters(preset="smoke", overrides=["training.batch_sise=4"]))
