"""The studies' sizes: every one loads, builds its cells and plans them, without anything being computed."""

from __future__ import annotations

import pytest

from flows.studies import STUDIES, study_named
from flows.studies.base import Findings, Setup, setup_of, study_sizes, with_fields
from flows.studies.run import check_cells, plan_study_for
from mot_core.analysis.outcomes import Outcomes
from mot_core.errors import SpecError
from mot_core.nodes import Node
from mot_core.spec import Experiment

ALL = [(name, size) for name in STUDIES for size in study_sizes(name)]


def cells_of(name: str, size: str, *overrides: str) -> dict[str, Experiment]:
    setup = setup_of(study_named(name), size, overrides)
    made = study_named(name).phases[0](setup, Findings(setup, Outcomes()))
    check_cells(name, [cell.name for cell in made])
    return {cell.name: cell.spec for cell in made}


def test_every_study_has_every_size() -> None:
    for name in STUDIES:
        assert {"smoke", "lab", "full", "paper"} <= set(study_sizes(name)), name


@pytest.mark.parametrize(("name", "size"), ALL)
def test_a_size_builds_its_cells(name: str, size: str) -> None:
    study, cells = study_named(name), cells_of(name, size)
    assert study.name == name and study.question.endswith("?")
    seeds = setup_of(study, size).options.training_seeds
    assert all(spec.training_seeds == seeds and spec.name == cell for cell, spec in cells.items())


def test_the_laboratorys_sizes_are_as_the_documents_say() -> None:
    methods = cells_of("methods", "lab")["methods"]
    assert len(methods.training_seeds) >= 5 and methods.budgets == ("matched_path", "matched_compute")
    samples = {spec.corpus.num_rationales for spec in cells_of("samples", "lab").values()}
    assert {25, 50, 100, 200, 400, 800} == samples
    rounds = cells_of("rounds", "lab")
    assert {spec.rounds * spec.steps_per_round for name, spec in rounds.items() if name != "long"} == {40}
    assert rounds["long"].rounds > 5
    teachers = cells_of("teachers", "lab")["teachers"]
    variants = [set(method.teachers or ()) for method in teachers.methods if method.variant_of == "mot"]
    home = {teacher.name for teacher in teachers.teachers[:3]}
    assert len([one for one in variants if one <= home]) == 7, "every subset of three"
    assert [one - home for one in variants if not one <= home][-1] == {"shifted", "peer", "weak", "wrong"}
    assert teachers.corpus.match_over == tuple(teacher.name for teacher in teachers.teachers[:3])


def test_overrides_reach_base_and_options() -> None:
    changed = cells_of("rounds", "smoke", "base.merge.rule=ties", "options.rounds_grid=[1, 4]")
    assert list(changed) == ["rounds-1", "rounds-4", "long"]
    assert {spec.merge.rule for spec in changed.values()} == {"ties"}


@pytest.mark.parametrize(
    ("size", "overrides", "told"),
    [
        ("labb", (), "has no size 'labb'; did you mean 'lab'"),
        ("smoke", ("rounds=3",), "expected base.FIELD=VALUE .* or options.FIELD=VALUE"),
        ("smoke", ("options.round_grid=[1]",), "round_grid"),
        ("smoke", ("options.training_seeds=[]",), "training_seeds"),
        ("smoke", ("base.training_seeds=[7]",), "the seeds are options.training_seeds"),
        ("smoke", ("base.rounds=0",), "rounds"),
    ],
)
def test_what_a_study_does_not_have_is_refused(size: str, overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){told}"):
        setup_of(study_named("rounds"), size, overrides)


def test_an_unknown_study_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="there is no study 'round'; did you mean 'rounds'"):
        study_named("round")


def test_a_base_without_what_a_study_compares_is_refused() -> None:
    with pytest.raises(SpecError, match="has no method shrunk, which this study compares"):
        cells_of(
            "consensus",
            "smoke",
            "base.methods=[{name: base}, {name: std}, {name: mtd}, {name: mot}, {name: shuffled}, {name: splits}]",
        )


def test_fields_are_laid_over_an_experiment_and_checked(setup: Setup) -> None:
    made = with_fields(setup.base, "other", corpus={"num_rationales": 9}, rounds=4)
    assert (made.name, made.rounds, made.corpus.num_rationales) == ("other", 4, 9)
    assert made.corpus.choice == setup.base.corpus.choice, "what is not named stays"
    with pytest.raises(SpecError, match="cell other: the spec is wrong"):
        with_fields(setup.base, "other", rounds=0)


def test_a_grid_with_two_cells_of_one_name_is_refused() -> None:
    with pytest.raises(SpecError, match="two cells are called a"):
        check_cells("x", ["a", "b", "a"])
    with pytest.raises(SpecError, match="its grid is empty"):
        check_cells("x", [])


@pytest.fixture
def setup() -> Setup:
    return setup_of(study_named("rounds"), "smoke")


@pytest.mark.parametrize("name", ["rounds", "on-policy"])
def test_a_paper_size_is_planned_for_another_machine_without_anything_here(name: str) -> None:
    setup = setup_of(study_named(name), "paper")
    node = Node.parse("1xH100" if name == "on-policy" else "8xH100")
    plans = plan_study_for(study_named(name), setup, node, None)
    steps = [one.step.identity for _, made in plans for one in made.steps]
    assert len(steps) == len(set(steps)), "a shared step counts once"
    assert all(made.seconds is not None and made.seconds > 0 for _, made in plans)


def test_a_study_that_does_not_fit_is_refused_with_what_would() -> None:
    setup = setup_of(study_named("methods"), "paper")
    with pytest.raises(SpecError, match="cell methods does not fit 1xH100"):
        plan_study_for(study_named("methods"), setup, Node.parse("1xH100"), None)


@pytest.mark.parametrize(
    ("name", "override", "told"),
    [
        ("rounds", "options.rounds_grid=[1, 3]", "product is 4, no multiple of 3 rounds"),
        ("merges", "options.reference=mena", "reference 'mena' is none of merges: mean, ties"),
        ("filters", "options.reference=none", "reference 'none' is none of filters"),
    ],
)
def test_options_that_cannot_be_answered_fail_before_anything_runs(name: str, override: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        cells_of(name, "smoke", override)


def test_studies_of_one_path_do_not_pay_for_the_other_budget() -> None:
    for name in (
        "rounds",
        "samples",
        "forgetting",
        "merges",
        "teachers",
        "transfer",
        "filters",
        "consensus",
        "best-teacher",
    ):
        assert {spec.budgets for spec in cells_of(name, "paper").values()} == {("matched_path",)}, name
    rounds = cells_of("rounds", "paper")
    assert {spec.evaluation.path.rounds for cell, spec in rounds.items() if cell != "long"} == {"last"}
    assert rounds["long"].evaluation.path.rounds == "all"


def test_the_papers_second_dataset_is_read_as_its_own() -> None:
    for name, spec in cells_of("best-teacher", "paper").items():
        wanted = ("s1k-1.1", None) if name.endswith("s1k") else ("boba", "AReaL-boba-106k.jsonl")
        assert (spec.problems.format, spec.problems.data_files) == wanted
