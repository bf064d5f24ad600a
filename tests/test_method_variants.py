"""Methods under other names and settings, and the controls that are no methods of the paper."""

from __future__ import annotations

from typing import Any

import pytest

from flows.run import outline_of
from mot_core.errors import SpecError
from mot_core.runs import teachers_of
from mot_core.spec import Experiment
from mot_core.spec_files import load_spec
from mot_core.steps import Step
from mot_core.world import World, resolve


def spec_with(*methods: str, **more: Any) -> Experiment:
    return load_spec("smoke", [f"methods=[{', '.join(methods)}]", *(f"{key}={value}" for key, value in more.items())])


def steps_of(spec: Experiment, kind: str) -> list[Step]:
    world = World(**{**vars(resolve(spec)), "removed": ()})
    return [step for step in outline_of(spec, world)[1] if step.kind == kind]


def labels_of(spec: Experiment) -> list[str]:
    world = World(**{**vars(resolve(spec)), "removed": ()})
    return [student.path.label for student in outline_of(spec, world)[0].students if student.is_final]


def test_a_variant_trains_under_its_own_name_and_settings() -> None:
    spec = spec_with(
        "{name: std, learning_rate: 0.001}",
        "{name: std-low, variant_of: std, learning_rate_scale: 0.5}",
        "{name: mtd-ema, variant_of: mtd, learning_rate: 0.002, training: {ema_decay: 0.9}}",
    )
    assert labels_of(spec) == [
        "std/running-total", "std/tens-and-ones", "std-low/running-total", "std-low/tens-and-ones", "mtd-ema",
    ]  # fmt: skip
    trained = {step.label: step.spec["training"] for step in steps_of(spec, "branch")}
    rates = {label: training["learning_rate"] for label, training in trained.items()}
    assert rates == {
        "finetune running-total, 6 steps, seed 1": 0.001, "finetune tens-and-ones, 6 steps, seed 1": 0.001,
        "finetune running-total, std-low, 6 steps, seed 1": 0.0005,
        "finetune tens-and-ones, std-low, 6 steps, seed 1": 0.0005,
        "finetune union, mtd-ema, 6 steps, seed 1": 0.002,
    }  # fmt: skip
    averaged = [label for label, training in trained.items() if "ema_decay" in training]
    assert averaged == ["finetune union, mtd-ema, 6 steps, seed 1"]


def test_a_variant_that_changes_nothing_is_the_method_itself() -> None:
    spec = spec_with("{name: mot}", "{name: again, variant_of: mot}")
    assert labels_of(spec) == ["mot", "again"]
    assert len(steps_of(spec, "merge")) == spec.rounds


def test_shrunk_students_are_stds_own_branches_scaled() -> None:
    spec = spec_with("{name: std, learning_rate: 0.003}", "{name: shrunk}")
    branches, merges = steps_of(spec, "branch"), steps_of(spec, "merge")
    assert len(branches) == 2, "nothing is trained for it"
    assert [merge.spec["rule"] for merge in merges] == ["task_arithmetic"] * 2
    assert [merge.spec["parameters"] for merge in merges] == [{"scale": 0.5}] * 2
    assert {merge.parents[-1][1].identity for merge in merges} == {branch.identity for branch in branches}


def test_splits_branch_on_parts_of_one_corpus() -> None:
    spec = spec_with("{name: splits}")
    assert labels_of(spec) == ["splits/running-total", "splits/tens-and-ones"]
    parts = steps_of(spec, "shuffled-corpora")
    assert [step.spec["teachers"] for step in parts] == [["running-total"], ["tens-and-ones"]]
    assert [step.spec["num_parts"] for step in parts] == [2, 2]
    branches = steps_of(spec, "branch")
    assert len(branches) == 2 * 2 * spec.rounds
    assert {tuple(branch.spec["corpora"]) for branch in branches} == {("part-1",), ("part-2",)}


def test_a_method_may_have_some_of_the_teachers_on_the_same_corpora() -> None:
    spec = spec_with(
        "{name: mot}",
        "{name: one, variant_of: mot, teachers: [tens-and-ones]}",
        "{name: std, teachers: [tens-and-ones]}",
    )
    assert labels_of(spec) == ["mot", "one", "std/tens-and-ones"]
    merges = {
        merge.label: [role for role, _ in merge.parents if role.startswith("branch/")]
        for merge in steps_of(spec, "merge")
    }
    assert merges["merge, one round 1, seed 1"] == ["branch/tens-and-ones"]
    assert len(merges["merge, mot round 1, seed 1"]) == 2
    first = [step for step in steps_of(spec, "branch") if step.spec["first_step"] == 0 and step.spec["num_steps"] == 3]
    assert len(first) == 2, "its first branch is MoT's own"
    assert len({dict(step.parents)["corpora"].identity for step in steps_of(spec, "branch")}) == 1


def test_parts_of_one_corpus_have_no_weights_by_teacher() -> None:
    spec = spec_with("{name: splits}", merge="{rule: weighted_mean, weights: {running-total: 0.9, tens-and-ones: 0.1}}")
    assert {tuple(step.spec["weights"]) for step in steps_of(spec, "merge")} == {(0.5, 0.5)}


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("{name: x, variant_of: mott}", "method 'mott' is not known.*did you mean 'mot'"),
        ("{name: mot, variant_of: std}", "its name is a built-in method's; give it another name"),
        ("{name: x, variant_of: std, import_path: 'a:b'}", "give variant_of or import_path, not both"),
        ("{name: std, learning_rate_scale: 2}", "learning_rate_scale belongs to a variant"),
        ("{name: std, teachers: [tens-and-one]}", r"teachers names \['tens-and-one'\], not among teachers"),
        ("{name: std, training: {learning_rate: 1}}", "learning_rate is a field of the method"),
        ("{name: std, training: {batch_sizes: 1}}", "batch_sizes"),
    ],
)
def test_variants_that_make_no_sense_are_refused(method: str, told: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){told}"):
        spec_with(method)


def test_the_union_in_parts_is_what_it_was() -> None:
    """A control's parts keep their identity; `num_parts` leaves no trace where it says nothing new."""
    (parts,) = steps_of(spec_with("{name: shuffled}"), "shuffled-corpora")
    assert "num_parts" not in parts.spec


def test_a_variants_rate_follows_its_original_even_where_that_is_not_listed() -> None:
    spec = spec_with("{name: opd, learning_rate: 0.0001}", "{name: after, variant_of: mot_opd}", "{name: std, learning_rate: 0.003}",
                     "{name: small, variant_of: shrunk}")  # fmt: skip
    assert (spec.learning_rate("after"), spec.learning_rate("small")) == (0.0001, 0.003)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (("{name: std}", "{name: vote, variant_of: ensemble}"), "'ensemble' trains nothing and has no variants"),
        (("{name: std, teachers: [tens-and-ones]}", "{name: ensemble}"), "add 'std', without teachers"),
    ],
)
def test_votes_are_over_all_teachers_students(methods: tuple[str, ...], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        spec_with(*methods)


def test_a_choice_at_an_end_of_the_grid_is_told() -> None:
    from flows.tune import Sweep, edge_note

    spec = spec_with("{name: std}", tuning="{learning_rates: [0.0002, 0.0005, 0.001]}")
    assert edge_note(spec, Sweep("x", {}, {"std": 0.0005})) == ""
    assert edge_note(spec, Sweep("x", {}, {"std": 0.0002, "mot": 0.0005})).startswith(
        "chosen at an end of the grid: std at 0.0002; widen"
    )


def test_whose_corpora_a_student_was_made_from() -> None:
    spec = spec_with(
        "{name: mot}",
        "{name: one, variant_of: mot, teachers: [tens-and-ones]}",
        "{name: splits}",
        "{name: std}",
        "{name: shrunk}",
    )
    world = World(**{**vars(resolve(spec)), "removed": ()})
    dumped, both = spec.model_dump(mode="json"), ["running-total", "tens-and-ones"]
    made = {
        one.path.label: teachers_of(dumped, {"method": one.path.label, "teacher": one.path.teacher})
        for one in outline_of(spec, world)[0].students
    }
    assert made == {
        "mot": both, "one": ["tens-and-ones"], **{f"{name}/{teacher}": [teacher] for name in ("splits", "std", "shrunk") for teacher in both}
    }  # fmt: skip
