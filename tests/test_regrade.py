"""Scores again from raw completions: the same by the same grader, others by another, and nothing published is touched."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.regrade import regraded_tables
from mot_core.artifacts import Store
from mot_core.errors import GradingError, SpecError, StoreError
from mot_core.files import read_jsonl
from mot_core.regrading import INSTALLED, mean_rows, regrade, regraded_paths
from mot_core.runs import read_index
from mot_core.spec import Experiment
from mot_core.tables import load_results
from tests.pico import pico_document
from tests.regraders import within_one
from tests.tasks.runs import computed_run

LAX = "tests.regraders:within_one"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, pico_models: Path) -> Path:
    root = tmp_path_factory.mktemp("graded") / "store"
    document = pico_document(pico_models)
    document["evaluation"] |= {"completer": "tests.regraders:Near", "path": {"rounds": "last", "num_problems": 4}}
    document["evaluation"]["benchmarks"][0] |= {"num_problems": 20}
    document |= {"methods": [{"name": name} for name in ("base", "std", "ensemble")], "rounds": 1, "steps_per_round": 2}
    return computed_run(root, Experiment.model_validate(document), f"sqlite:///{root}/mlflow.db")


@pytest.fixture
def store(run_dir: Path) -> Store:
    return Store(run_dir.parent.parent)


def fingerprints(store: Store) -> dict[str, str]:
    """Every file of every published step, by content."""
    paths = sorted(path for path in (store.root / "objects").rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_same_graders_change_nothing(store: Store, run_dir: Path) -> None:
    before = fingerprints(store)
    found = regrade(store, run_dir)
    assert found.changed == [] and found.left_out == []
    assert all(row["old"] == row["new"] for row in (*found.students, *found.teachers))
    published = load_results(run_dir).scores.query("is_final")
    said = {(row["method"], row["benchmark"], row["split"]): row["new"]["avg_at_k"] for row in found.students}
    keys = zip(published["method"], published["benchmark"], published["split"], strict=True)
    assert said == dict(zip(keys, published["avg_at_k"], strict=True))
    assert {method for method, _, _ in said} == {"base", "std/ann", "std/bob", "ensemble"}
    assert fingerprints(store) == before


def test_another_grader_changes_what_it_judges_otherwise(store: Store, run_dir: Path) -> None:
    before = fingerprints(store)
    found = regrade(store, run_dir, LAX, num_workers=2)
    assert fingerprints(store) == before
    expected = set()
    for step in {e["identity"]: e for s in read_index(run_dir)["students"] for e in s["evaluations"]}.values():
        golds = {
            row["problem_id"]: row["answer"]
            for row in read_jsonl(store.object_dir(step["problems"]) / "problems.jsonl")
        }
        for row in read_jsonl(store.object_dir(step["identity"]) / "graded.jsonl"):
            gold, answer = golds[row["problem_id"]], row["extracted"]
            if row["verdict"] == "incorrect" and within_one("", gold, answer):
                assert int(answer) == int(gold) + 1
                expected.add((step["identity"], row["problem_id"], row["sample_index"], "incorrect", "correct", answer))
    assert len(expected) > 5
    changed = {tuple(row[n] for n in ("step", "problem", "sample", "old", "new", "extracted")) for row in found.changed}
    assert changed == expected

    base = next(
        row for row in found.students if (row["method"], row["benchmark"], row["split"]) == ("base", "sums", "test")
    )
    assert base["new"]["avg_at_k"] - base["old"]["avg_at_k"] == pytest.approx(base["num_to_right"] / 40)
    assert base["num_from_right"] == 0 and base["num_changed"] == base["num_to_right"] > 0
    # What no grader sees stays: an answer that was never stated, or cut off.
    assert base["new"]["unparseable_share"] == base["old"]["unparseable_share"] > 0
    assert base["new"]["truncated_share"] == base["old"]["truncated_share"] > 0
    # All students gave the same answers, so their vote is each one's own verdict.
    votes = [row for row in mean_rows(found.students) if row["benchmark"] == "sums" and row["split"] == "test"]
    assert len({(row["old"], row["new"]) for row in votes}) == 1 and "ensemble" in {row["method"] for row in votes}


def test_a_stricter_grader_takes_away(store: Store, run_dir: Path) -> None:
    found = regrade(store, run_dir, "exact")
    assert {(row["old"], row["new"]) for row in found.changed} == {("correct", "incorrect")}
    assert all(row["extracted"].startswith("0") for row in found.changed if row["extracted"] == row["old_extracted"])
    base = next(
        row for row in found.students if (row["method"], row["benchmark"], row["split"]) == ("base", "sums", "test")
    )
    assert (base["new"]["avg_at_k"], base["num_to_right"]) == (0.0, 0)
    assert base["num_from_right"] == round(base["old"]["avg_at_k"] * 40) > 0


def test_what_is_found_lies_beside_the_run(store: Store, run_dir: Path) -> None:
    found = regrade(store, run_dir, LAX)
    document, changed = regraded_paths(run_dir, LAX)
    assert (document.name, changed.name) == (
        "regraded-tests.regraders-within_one.json", "regraded-tests.regraders-within_one.csv",
    )  # fmt: skip
    said = json.loads(document.read_text())
    assert (said["grader"], said["num_changed"], said["run_id"]) == (LAX, len(found.changed), run_dir.name)
    with changed.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["problem"], int(row["sample"]), row["old"], row["new"]) for row in rows] == [
        (row["step"], row["problem"], row["sample"], row["old"], row["new"]) for row in found.changed
    ]
    regrade(store, run_dir)
    assert regraded_paths(run_dir, INSTALLED)[0].name == "regraded-installed.json"
    assert document.is_file()
    table, teachers, text = regraded_tables(found, run_dir)
    assert table.row_count == len(mean_rows(found.students)) and teachers.row_count == 2
    assert str(document) in str(text)


def test_a_benchmark_that_a_grader_cannot_serve_is_left_out(store: Store, run_dir: Path) -> None:
    found = regrade(store, run_dir, "integer")
    assert {row["what"].split(", ")[-1] for row in found.left_out} == {"panel"}
    assert "do not suit 'integer'" in found.left_out[0]["reason"]
    assert {row["benchmark"] for row in found.students} == {"sums"} and len(found.teachers) == 2


@pytest.mark.parametrize("grader", ["maths", "tests.regraders:nowhere", "no_such_module:f"])
def test_an_unknown_grader_is_refused(store: Store, run_dir: Path, grader: str) -> None:
    with pytest.raises(SpecError, match="--grader"):
        regrade(store, run_dir, grader)


@pytest.mark.parametrize("grader", ["choice", "tests.regraders:never"])
def test_a_grader_that_can_serve_nothing_is_refused(store: Store, run_dir: Path, grader: str) -> None:
    before = set(run_dir.iterdir())
    with pytest.raises(GradingError, match="cannot serve any step"):
        regrade(store, run_dir, grader)
    assert set(run_dir.iterdir()) == before


def test_the_command(store: Store, run_dir: Path) -> None:
    done = CliRunner().invoke(
        app, ["regrade", "pico", "--grader", "exact", "--grader", "family", "--store", str(store.root)]
    )
    assert done.exit_code == 0, done.output
    for grader, moved in (("exact", True), ("family", False)):
        said = json.loads(regraded_paths(run_dir, grader)[0].read_text())
        assert (said["num_changed"] > 0) is moved
    assert "avg@k, mean over seeds" in done.output and "std/ann" in done.output
    wrong = CliRunner().invoke(app, ["regrade", "picco", "--store", str(store.root)])
    assert isinstance(wrong.exception, StoreError) and "pico" in str(wrong.exception)


def test_damaged_completions_are_refused(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir.parent.parent, tmp_path / "store")
    store = Store(tmp_path / "store")
    copied = store.root / "runs" / run_dir.name
    identity = read_index(copied)["students"][0]["evaluations"][0]["identity"]
    path = store.object_dir(identity) / "completions.jsonl"
    path.write_text(path.read_text().replace("think>so", "think>no", 1))
    with pytest.raises(StoreError, match=r"completions\.jsonl"):
        regrade(store, copied)
