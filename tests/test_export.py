"""An exported student loads by itself, is the student of the run, and its card names origins and licences."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.run import RunOptions, run
from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.export import export_student
from mot_core.files import sha256_of
from mot_core.tables import load_results
from tests.pico import pico_document, pico_experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(pico_models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    root = tmp_path_factory.mktemp("export") / "store"
    document = pico_document(pico_models)
    teachers = [{**document["teachers"][0], "license": "mit"}, {**document["teachers"][1], "license": "a | b\n# c"}]
    spec = pico_experiment(
        pico_models, teachers=teachers, methods=[{"name": "base"}, {"name": "std"}, {"name": "mot"}],
        student={**document["student"], "license": "apache-2.0"}, problems={**document["problems"], "license": "cc0-1.0"},
    )  # fmt: skip
    return Store(root), run(spec, RunOptions(root, workers=2))


def front_matter(card: str) -> dict[str, object]:
    document: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return document


def test_the_merged_student_loads_and_is_the_runs(done: tuple[Store, Path], tmp_path: Path) -> None:
    store, run_dir = done
    out = export_student(store, run_dir, "mot", tmp_path / "mot")
    summary = load_results(run_dir).summary
    assert sha256_of(out / "model.safetensors") == summary["students"]["mot"]["1"]["sha256"]
    assert {path.name for path in out.iterdir()}.isdisjoint({"manifest.json", "diagnostics.json", "training.jsonl"})
    AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out).chat_template
    card = (out / "README.md").read_text()
    facts = front_matter(card)
    assert facts["base_model_relation"] == "merge" and facts["base_model"] == "student"
    assert facts["license"] == "other" and "mit" in str(facts["license_name"])
    assert "| ann | 0.5 |" in card and "| bob | 0.5 |" in card
    assert "\n# c" not in card, "a licence's text makes no heading"


def test_a_single_teachers_student_names_that_teacher_alone(done: tuple[Store, Path], tmp_path: Path) -> None:
    store, run_dir = done
    card = (export_student(store, run_dir, "std/ann", tmp_path / "std") / "README.md").read_text()
    assert front_matter(card)["base_model_relation"] == "finetune"
    assert "| teacher | ann | mit |" in card and "bob" not in card


def test_what_cannot_be_exported_is_told(done: tuple[Store, Path], tmp_path: Path) -> None:
    store, run_dir = done
    with pytest.raises(StoreError, match="base is the untrained student, .*: load it by that name"):
        export_student(store, run_dir, "base", tmp_path / "base")
    with pytest.raises(StoreError, match=r"no final student of method 'mott', .*did you mean 'mot'\?"):
        export_student(store, run_dir, "mott", tmp_path / "x")
    with pytest.raises(StoreError, match="seed 7"):
        export_student(store, run_dir, "mot", tmp_path / "x", seed=7)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    with pytest.raises(StoreError, match="is not empty"):
        export_student(store, run_dir, "mot", full)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
