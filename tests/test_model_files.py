"""A checkpoint folder with a pickle is refused wherever one is read, and the pickle's code never runs.

Each pickle here is a real one: loading it creates a file.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.artifacts import Store
from mot_core.errors import ModelError
from mot_core.merging.alone import merge
from mot_core.merging.recipe import Recipe
from mot_core.model_files import check_model_files
from mot_core.models import load_model, load_tokenizer, local_copy
from mot_core.runner import ModelCache, RunSettings
from mot_core.sft.checkpoints import Checkpoints
from mot_core.spec import Experiment
from mot_core.world import resolve
from tests.pico import pico_document
from tests.sft.branches import branch

REFUSED = r"a pickle runs code when it is loaded, so a checkpoint folder that has one is refused"
NAMES = (
    "pytorch_model.bin", "optimizer.pt", "training_args.bin", "rng_state.pth", "scheduler.PT", "model.pkl",
    "state.pickle", "last.ckpt", "adapter_model.bin",
)  # fmt: skip


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that exists once a pickle of `with_pickle` has been loaded."""
    return tmp_path / "code-ran"


def with_pickle(directory: Path, name: str, witness: Path) -> Path:
    (directory / name).write_bytes(pickle.dumps(Touch(witness)))
    return directory


@pytest.fixture
def model(pico_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_models / "student", tmp_path / "model"))


def test_the_pickle_of_these_tests_does_run_code(tmp_path: Path, witness: Path) -> None:
    with_pickle(tmp_path, "x.pkl", witness)
    with (tmp_path / "x.pkl").open("rb") as file:
        pickle.load(file).close()
    assert witness.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_beside_safetensors_is_refused(model: Path, witness: Path, name: str) -> None:
    with_pickle(model, name, witness)
    with pytest.raises(ModelError, match=rf"here: .*model holds {name}: {REFUSED}"):
        check_model_files(model, "here")


def test_many_pickles_are_told_shortly(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.pt").touch()
    with pytest.raises(ModelError, match=r"holds 0\.pt, 1\.pt, 2\.pt, 3\.pt, 4\.pt and 2 more: a pickle"):
        check_model_files(tmp_path, "here")


@pytest.mark.parametrize("role", ["student", "teacher", "judge"])
def test_a_spec_that_names_such_a_folder_is_refused(pico_models: Path, model: Path, witness: Path, role: str) -> None:
    with_pickle(model, "optimizer.pt", witness)
    document = pico_document(pico_models)
    if role == "student":
        document["student"]["model"] = str(model)
    elif role == "teacher":
        document["teachers"][1]["model"] = str(model)
    else:
        document["corpus"]["judge"] = {"name": "judge", "model": str(model)}
    where = {"student": "student", "teacher": r"teachers\.bob", "judge": r"corpus\.judge"}[role]
    with pytest.raises(ModelError, match=rf"{where}: .* holds optimizer\.pt: {REFUSED}"):
        resolve(Experiment.model_validate(document))
    assert not witness.exists()


def test_loading_refuses_what_came_after_the_spec_was_checked(model: Path, witness: Path) -> None:
    with_pickle(model, "pytorch_model.bin", witness)
    for load in (lambda: load_model(str(model), None, "cpu"), lambda: load_tokenizer(str(model)), lambda: local_copy(str(model), None)):  # fmt: skip
        with pytest.raises(ModelError, match=REFUSED):
            load()
    assert not witness.exists()


def test_a_branch_refuses_its_student(model: Path, witness: Path, tmp_path: Path) -> None:
    with_pickle(model, "rng_state.pth", witness)
    with pytest.raises(ModelError, match=REFUSED):
        branch(Store(tmp_path / "store").open(), model)
    assert not witness.exists()


def test_a_checkpoint_inside_a_branch_is_refused(tmp_path: Path, witness: Path) -> None:
    directory = tmp_path / ".checkpoint"
    directory.mkdir()
    (directory / "state.json").write_text("{}")
    with_pickle(directory, "optimizer-0.pt", witness)
    module = torch.nn.Linear(1, 1)
    checkpoints = Checkpoints(tmp_path, 0.0)
    with pytest.raises(ModelError, match=rf"checkpoint: .*: {REFUSED}"):
        checkpoints.load(module, torch.optim.AdamW(module.parameters()))
    assert not witness.exists()


@pytest.mark.parametrize("place", ["base", "branch", "adapter", "previous"])
def test_a_merge_of_such_a_folder_is_refused(pico_models: Path, model: Path, witness: Path, tmp_path: Path, place: str) -> None:  # fmt: skip
    with_pickle(model, "training_args.bin", witness)
    if place == "adapter":
        (model / "model.safetensors").unlink()
        (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
        with_pickle(model, "adapter_model.bin", witness)
    ann, bob = str(pico_models / "ann"), str(pico_models / "bob")
    recipe: dict[str, Any] = {"branches": [ann, bob]}
    if place in ("branch", "adapter"):
        recipe["branches"] = [ann, str(model)]
    elif place == "base":
        recipe |= {"base": str(model), "rule": "task_arithmetic"}
    else:
        recipe |= {"previous": str(model)}
    with pytest.raises(ModelError, match=REFUSED):
        merge(Recipe.model_validate(recipe), tmp_path / "out", None)
    assert not witness.exists() and not (tmp_path / "out").exists()


def test_the_vllm_engine_is_not_started(
    model: Path, witness: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mot_core.completers.vllm_completer import VllmCompleter
    from tests.vllm.engines import fake_python, requests, source

    monkeypatch.setenv("MOT_VLLM_PYTHON", str(fake_python(tmp_path)))
    monkeypatch.setenv("VLLM_FAKE_NOTES", str(tmp_path / "notes"))
    with_pickle(model, "pytorch_model.bin", witness)
    cache = ModelCache()
    with pytest.raises(ModelError, match=REFUSED):
        VllmCompleter(source(model, cache, tmp_path)).complete(requests(1), lambda rows: None, lambda tokens: None)
    cache.close()
    assert not witness.exists() and not (tmp_path / "notes").exists()


def test_a_pickle_under_the_name_of_safetensors_is_not_run(model: Path, witness: Path) -> None:
    with_pickle(model, "model.safetensors", witness)
    with pytest.raises(Exception, match=r"(?i)header|deserializ|safetensors"):
        load_model(str(model), None, "cpu")
    assert not witness.exists()


@pytest.mark.parametrize("file", ["weights.bin", "../elsewhere/model.safetensors", "/etc/model.safetensors", 7])
def test_an_index_names_safetensors_beside_it_only(model: Path, witness: Path, file: object) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": file}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ModelError, match=r"index\.json names .*; expected the name of a \*\.safetensors file beside it"
    ):
        check_model_files(model, "here")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 1}', "{}"])
def test_an_index_that_is_none_is_refused(model: Path, text: str) -> None:
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="cannot be read as an index of weights"):
        check_model_files(model, "here")


def test_an_adapter_beside_a_model_is_refused(pico_models: Path, model: Path) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/somewhere/else"}))
    document = {**pico_document(pico_models), "student": {"name": "student", "model": str(model)}}
    with pytest.raises(ModelError, match=r"student: .* holds adapter_config\.json beside a whole model"):
        resolve(Experiment.model_validate(document))


def test_of_a_hub_repository_no_pickle_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fnmatch import fnmatch

    asked: list[dict[str, Any]] = []

    def download(locator: str, **how: Any) -> str:
        asked.append(how)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    local_copy("owner/name", "abc")
    (how,) = asked
    assert not [name for name in NAMES for pattern in how["allow_patterns"] if fnmatch(name, pattern)]


def test_models_are_loaded_from_safetensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(locator: str, **how: Any) -> None:
        asked.append(how)
        raise OSError("stop here")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    with pytest.raises(ModelError, match="stop here"):
        load_model("owner/name", None, "cpu")
    assert asked[0]["use_safetensors"] is True and asked[0]["trust_remote_code"] is False


def test_a_harness_is_not_started(model: Path, witness: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mot_core.evaluation import harness
    from tests.contexts import run

    monkeypatch.setattr(harness, "ask", lambda *args, **settings: pytest.fail("it was started"))
    with_pickle(model, "optimizer.pt", witness)
    spec = {"student": "s", "include_path": None}
    with pytest.raises(ModelError, match=REFUSED):
        run(Store(tmp_path / "store").open(), "harness", spec, locators={"student": str(model)}, settings=RunSettings())
