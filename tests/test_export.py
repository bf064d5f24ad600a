"""An exported student loads by itself, is the student of the run, and its card names origins and licences."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from flows.run import RunOptions, run
from mot_core.artifacts import Store
from mot_core.errors import StoreError
from mot_core.export import card_of, export_student, final_student
from mot_core.files import sha256_of
from mot_core.model_files import check_model_files
from mot_core.removal import remove_unwanted
from mot_core.runs import read_index
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
    assert GenerationConfig.from_pretrained(out).eos_token_id is not None
    card = (out / "README.md").read_text()
    facts = front_matter(card)
    # The start is a directory here: what carries its name on the hub is another model.
    assert "base_model" not in facts and "base_model_relation" not in facts and "The start was student." in card
    assert facts["license"] == "other" and "mit" in str(facts["license_name"])
    assert facts["license_link"] == "LICENSE.md" and "| teacher | ann | mit |" in (out / "LICENSE.md").read_text()
    scores = load_results(run_dir).scores
    (score,) = scores[(scores.method == "mot") & (scores.split == "test") & (scores.benchmark == "sums")].avg_at_k
    assert f"| sums | 2 | {score:.3f} | 6 |" in card
    assert "| ann | 0.5 |" in card and "| bob | 0.5 |" in card
    assert "\n# c" not in card, "a licence's text makes no heading"


def test_a_single_teachers_student_names_that_teacher_alone(done: tuple[Store, Path], tmp_path: Path) -> None:
    store, run_dir = done
    card = (export_student(store, run_dir, "std/ann", tmp_path / "std") / "README.md").read_text()
    assert "nothing was merged" in card
    assert "| teacher | ann | mit |" in card and "bob" not in card


def test_the_hubs_own_reader_takes_the_card(done: tuple[Store, Path], tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    store, run_dir = done
    data = ModelCard.load(export_student(store, run_dir, "mot", tmp_path / "mot") / "README.md").data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("transformers", "text-generation", "other")
    # The same run, as if it had started from a model of the hub under one licence.
    index = read_index(run_dir)
    index["spec"]["student"]["model"] = index["world"]["student"]["locator"] = "Qwen/Qwen3-1.7B"
    for part in (index["spec"]["student"], *index["spec"]["teachers"], index["spec"]["problems"]):
        part["license"] = "Apache-2.0"
    for method, relation in (("mot", "merge"), ("std/ann", "finetune")):
        student = final_student(store, index, method, None, None)
        card = ModelCard(card_of(store, index, student))
        assert card.data.to_dict() == {
            "license": "apache-2.0", "base_model": "Qwen/Qwen3-1.7B", "base_model_relation": relation,
            "library_name": "transformers", "pipeline_tag": "text-generation",
            "tags": [*(["merge"] if relation == "merge" else []), "reasoning", "chain-of-thought", "distillation", "merge-of-thought"],
        }  # fmt: skip


def test_nothing_is_removed_from_the_moment_that_weights_are_verified(
    done: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run_dir = done

    def check(directory: Path, where: str) -> None:
        with pytest.raises(StoreError, match="is in use: mot export to .*Nothing was removed"):
            remove_unwanted(store)
        check_model_files(directory, where)

    monkeypatch.setattr("mot_core.export.check_model_files", check)
    export_student(store, run_dir, "mot", tmp_path / "mot")


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
