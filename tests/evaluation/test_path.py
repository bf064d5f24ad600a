"""A path of one branch followed inside its rounds: which students are kept, and what tables, report and tracker make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.run import outline_of
from flows.tune import sweep_specs
from mot_core.artifacts import Store
from mot_core.dag import path_snapshots, round_at
from mot_core.prepare import world_of
from mot_core.report.measures import Measures
from mot_core.spec import Experiment
from mot_core.tables import load_results
from tasks.tracking_plan import plan_run
from tests.pico import pico_document
from tests.tasks.runs import computed_run

METHODS = ("base", "std", "merge_once", "mot")


def spec_of(models: Path, path: dict[str, Any], **changes: Any) -> Experiment:
    document = pico_document(models)
    document["evaluation"] |= {"path": {"num_problems": 4, **path}, "completer": "tests.regraders:Near"}
    return Experiment.model_validate({**document, "methods": [{"name": name} for name in METHODS], **changes})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, pico_models: Path) -> Path:
    root = tmp_path_factory.mktemp("followed") / "store"
    return computed_run(root, spec_of(pico_models, {"every_steps": 3}), f"sqlite:///{root}/mlflow.db")


def test_snapshots_of_a_path_of_eight_steps(pico_models: Path) -> None:
    for path, kept in (
        ({}, [4]), ({"every_steps": 3}, [3, 4, 6]), ({"every_steps": 2}, [2, 4, 6]), ({"rounds": "last"}, []),
        ({"rounds": "last", "every_steps": 3}, [3, 6]), ({"every_steps": 3, "methods": ["mot"]}, []),
    ):  # fmt: skip
        assert path_snapshots(spec_of(pico_models, path), "std") == kept, path
    spec = spec_of(pico_models, {"every_steps": 3})
    assert [round_at(spec, step) for step in (3, 4, 6, 8)] == [0.75, 1, 1.5, 2]
    assert isinstance(round_at(spec, 4), int)


def test_absent_it_leaves_no_trace_and_merge_once_shares_stds_branches(pico_models: Path) -> None:
    def branches(path: dict[str, Any]) -> dict[str, list[str]]:
        spec = spec_of(pico_models, path)
        outline, _ = outline_of(spec, world_of(spec))
        final = [student for student in outline.students if student.is_final]
        return {student.path.label: [step.identity for step in student.path.branches] for student in final}

    without, explicit, followed = branches({}), branches({"every_steps": None}), branches({"every_steps": 3})
    assert explicit == without
    assert followed["merge_once"] == followed["std/ann"] + followed["std/bob"]
    assert followed["std/ann"] != without["std/ann"]
    assert followed["mot"] == without["mot"]


@pytest.mark.parametrize("steps", [8, 9])
def test_a_number_not_below_the_paths_length_is_refused(pico_models: Path, steps: int) -> None:
    with pytest.raises(ValidationError, match=rf"every_steps is {steps}, but a path has 8 optimizer steps"):
        spec_of(pico_models, {"every_steps": steps})


def test_only_the_last_round_and_every_two_steps(pico_models: Path) -> None:
    spec = spec_of(pico_models, {"rounds": "last", "every_steps": 2})
    outline, _ = outline_of(spec, world_of(spec))
    rounds: dict[str, list[float]] = {}
    for student in outline.students:
        rounds.setdefault(student.path.label, []).append(student.round_index)
    assert rounds == {
        "base": [0],
        "std/ann": [0.5, 1, 1.5, 2],
        "std/bob": [0.5, 1, 1.5, 2],
        "merge_once": [2],
        "mot": [2],
    }


def test_a_sweep_follows_no_path(pico_models: Path) -> None:
    spec = spec_of(pico_models, {"every_steps": 3})
    assert {path_snapshots(variant, "std") == [] for variant in sweep_specs(spec).values()} == {True}


def test_under_matched_compute_a_longer_branch_is_not_followed(pico_models: Path) -> None:
    spec = spec_of(pico_models, {"every_steps": 3}, budgets=["matched_compute"])
    outline, _ = outline_of(spec, world_of(spec))
    assert [s.round_index for s in outline.students if s.path.label == "std/ann"] == [2]


def test_tables_keep_whole_rounds_whole(run_dir: Path) -> None:
    scores = load_results(run_dir).scores
    std = scores.query("method == 'std/ann' and benchmark == 'sums' and split == 'dev'")
    assert [(repr(row), steps) for row, steps in zip(std["round"], std["path_steps"], strict=True)] == [
        ("0.75", 3), ("1", 4), ("1.5", 6), ("2", 8),
    ]  # fmt: skip
    assert set(scores.query("split == 'test'")["round"]) == {0, 2}
    assert sorted(scores.query("method == 'mot'")["round"].unique()) == [1, 2]
    text = (run_dir / "tables" / "scores.csv").read_text()
    assert ",0.75," in text and ",1.0,False" not in text


def test_the_summary_has_every_place_in_order(run_dir: Path) -> None:
    budget = json.loads((run_dir / "summary.json").read_text())["budgets"]["matched_path"]
    assert [entry["round"] for entry in budget["std/ann"]["rounds"]] == [0.75, 1, 1.5, 2]
    assert [entry["round"] for entry in budget["mot"]["rounds"]] == [1, 2]
    assert all(entry["benchmarks"]["sums"]["num_problems"] == 4 for entry in budget["std/ann"]["rounds"])


def test_errors_tests_and_bounds_reach_summary_and_tables(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    results = load_results(run_dir)
    shares = results.problem_scores.query("method == 'mot' and benchmark == 'sums' and split == 'test'")
    expected = float((shares["num_correct"] / shares["num_samples"]).std(ddof=1)) / 6**0.5
    found = summary["budgets"]["matched_path"]["mot"]["benchmarks"]["sums"]
    (row,) = results.scores.query("method == 'mot' and benchmark == 'sums' and split == 'test'").to_dict("records")
    assert found["se_problems"] == row["se_problems"] == pytest.approx(expected) and expected > 0
    assert found["se_seeds"] is None
    tests = {(row["benchmark"], row["test"], row["detectable"]) for row in summary["comparisons"]}
    assert tests == {("sums", "permutation", None), ("panel", "mcnemar", None)}  # k = 2 and k = 1, one seed
    bounds = [row["ci95"] for row in summary["comparisons"] if row["benchmark"] == "sums"]
    assert bounds[0] == pytest.approx([-(1 - 0.05 ** (1 / 6)), 1 - 0.05 ** (1 / 6)])


def test_the_report_draws_them(run_dir: Path) -> None:
    measures = Measures(load_results(run_dir))
    curve = measures.curves.query("method == 'std/ann' and benchmark == 'sums'")
    assert curve["round"].tolist() == [0.75, 1.0, 1.5, 2.0]
    page = (run_dir / "report.html").read_text()
    assert "round boundaries and inside rounds" in page
    # All students answer alike in this run, which the note under the table has to say.
    assert "What the comparison could see." in page and "all problems differ alike" in page
    assert "sign-flip permutation test and exact McNemar test over problems" in page


def test_the_tracker_gets_them_by_optimizer_step(run_dir: Path) -> None:
    plans = {plan.key: plan for plan in plan_run(Store(run_dir.parent.parent), run_dir)}
    std = plans["budget=matched_path/method=std/ann/seed=1"].metrics
    assert [step for name, _, step in std if name == "path/sums/avg_at_1"] == [3, 4, 6, 8]
    assert [step for name, _, step in std if name == "dev/sums/avg_at_1"] == [1, 2]
    assert not [
        name for name, _, _ in plans["budget=matched_path/method=mot/seed=1"].metrics if name.startswith("path/")
    ]
