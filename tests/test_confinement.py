"""What a spec, a run id or an index names stays in the store where it is written, and under the roots where it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flows.show import step_logs
from mot_core.artifacts import MANIFEST, Store
from mot_core.confinement import check_keys_within, check_paths_within, data_roots
from mot_core.errors import MotError, ProblemError, SpecError, StoreError
from mot_core.export import directory_of
from mot_core.files import entry_name, inside
from mot_core.runs import INDEX, find_run_dir, new_run_dir
from mot_core.spec import Experiment, Name, Table
from mot_core.spec_files import load_spec, spec_from_document
from mot_core.steps import Step
from mot_core.world import files_identity, resolve
from tests.pico import pico_document

HOSTILE = (
    "..", ".", "", "../../x", "/etc/passwd", "a/b", "a\\b", "..\\..\\x", "a\0b", "a\n", "\n", " a", "a b", "a" * 300,
    "‥", "․․", "a／b", "․․∕x", "a\u202eb", "é", "C:\\x", "C:x", "~", "~root", "-rf/..", "\ud800",
)  # fmt: skip
STEP = Step("problems", {"seed": 1}, label="a step")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


# -- what is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_in_a_spec_is_more_than_a_part_of_a_path(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["object_dir", "log_path", "usage_path", "removed_path", "lock"])
def test_no_identity_leads_out_of_the_store(store: Store, place: str, name: str) -> None:
    with pytest.raises(StoreError, match="names no place; expected 1 to 200 of the letters"):
        getattr(store, place)(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_run_is_made_outside(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match=r"run .* names no place"):
        new_run_dir(store, name, "0" * 32)
    assert list((store.root / "runs").iterdir()) == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_no_run_is_found_outside(store: Store, name: str) -> None:
    new_run_dir(store, "pico", "0" * 32)
    (store.root / "store-two").mkdir()
    with pytest.raises(StoreError, match="no run"):
        find_run_dir(store, name)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_an_entry_has_its_folder_as_parent(name: str) -> None:
    folder = Path("/store/objects")
    try:
        accepted = entry_name(name, "identity")
    except StoreError:
        return
    assert Path(os.path.normpath(folder / accepted)).parent == folder and accepted.isascii()


@given(st.lists(st.sampled_from(["..", ".", "a", "/", "b", "//", "\0"]), max_size=6).map("/".join))
@settings(deadline=None)
def test_a_subdirectory_is_below_its_directory(part: str) -> None:
    directory = Path("/store/objects/x")
    try:
        place = inside(directory, part, "it")
    except StoreError:
        return
    assert Path(os.path.normpath(place)).is_relative_to(directory)


@pytest.mark.parametrize("folder", ["objects", "tmp", "logs", "locks"])
def test_a_link_in_the_store_is_not_written_through(store: Store, tmp_path: Path, folder: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    suffix = {"logs": ".log", "tmp": ".1"}.get(folder, "")
    target = outside / "kept.txt" if folder == "logs" else outside
    (store.root / folder / f"{STEP.identity}{suffix}").symlink_to(target)
    place = {"objects": store.object_dir, "logs": store.log_path, "locks": store.lock}.get(folder)
    if place is not None:
        with pytest.raises(StoreError, match=rf"{folder}/.* is a symbolic link to '{target}'; remove it"):
            place(STEP.identity)
    if folder != "logs":  # which is written by the workers' parent, at the place that the pool was given

        def write(work_dir: Path) -> dict[str, Any]:
            (work_dir / "new.txt").write_text("new")
            return {}

        with pytest.raises(StoreError, match="symbolic link"):
            store.obtain(STEP, write)
    assert [path.name for path in outside.iterdir()] == ["kept.txt"] and (outside / "kept.txt").read_text() == "kept"


def test_a_link_in_unfinished_work_is_removed_and_not_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept.txt").touch()
    work_dir = store.root / "tmp" / f"{STEP.identity}.0"
    work_dir.mkdir()
    (work_dir / "left").symlink_to(tmp_path / "outside")
    store.obtain(STEP, lambda place: {})
    assert (tmp_path / "outside" / "kept.txt").is_file()
    assert [path.name for path in store.object_dir(STEP.identity).iterdir()] == [MANIFEST]


def test_a_link_among_the_objects_is_told_and_other_entries_are_passed_over(store: Store, tmp_path: Path) -> None:
    (store.root / "objects" / "lost+found").mkdir()
    assert list(store.manifests()) == []
    (tmp_path / MANIFEST).write_text("{}")
    (store.root / "objects" / "x").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="objects/x is a symbolic link"):
        list(store.manifests())


@pytest.mark.parametrize("place", ["", "report.html", "tables", "cells/a"])
def test_a_run_with_a_link_in_it_is_refused(store: Store, tmp_path: Path, place: str) -> None:
    (tmp_path / "outside").mkdir()
    if place:
        link = new_run_dir(store, "pico", "0" * 32) / place
        link.parent.mkdir(exist_ok=True)
    else:
        link = store.root / "runs" / "pico-00000000-001"
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=r"run pico-00000000-001: .* is a symbolic link to '.*outside'; remove it"):
        find_run_dir(store, "pico")


def test_a_forged_index_leads_nowhere(store: Store, tmp_path: Path) -> None:
    run_dir = new_run_dir(store, "pico", "0" * 32)
    (store.root / "secret.log").write_text("secret")
    (run_dir / INDEX).write_text(json.dumps({"steps": [{"identity": "../secret", "label": "x", "state": "run"}]}))
    with pytest.raises(StoreError, match="names no place"):
        list(step_logs(store, run_dir, "x"))
    for subdirectory in ("../..", "/etc", "a/../../../b"):
        with pytest.raises(StoreError, match="leads out of"):
            directory_of(store, {"student": {"identity": STEP.identity, "subdirectory": subdirectory}})


def test_planning_over_a_store_leaves_no_link(pico_spec: Experiment, store: Store) -> None:
    from mot_core.prepare import prepare

    world, _ = prepare(pico_spec, resolve(pico_spec), store, publish=True)
    overlap = next(manifest for manifest in store.manifests() if manifest.kind == "overlap")
    (store.object_dir(overlap.identity) / MANIFEST).unlink()
    assert prepare(pico_spec, resolve(pico_spec), store, publish=False)[0] == world


# -- what is read ----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, pico_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the pico models, a file of problems; beside it, outside, a secret."""
    inner = tmp_path / "work"
    inner.mkdir()
    for name in ("student", "ann", "bob"):
        (inner / name).mkdir()
        for file in (pico_models / name).iterdir():
            os.link(file, inner / name / file.name)
    (inner / "problems.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "secret.jsonl").write_text("{}\n")
    monkeypatch.chdir(inner)
    return inner


def experiment(place: Path, change: Callable[[dict[str, Any]], None] = lambda document: None) -> Experiment:
    document = pico_document(place)
    change(document)
    return Experiment.model_validate(document)


def refused(place: Path, field: str, change: Callable[[dict[str, Any]], None], roots: list[Path] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        check_paths_within(experiment(place, change), roots or [place])
    assert str(caught.value).startswith(f"{field}: "), caught.value
    return str(caught.value)


def at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a document at a place."""

    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def test_a_spec_within_its_roots_passes(place: Path) -> None:
    check_paths_within(experiment(place), [place])
    for file in (
        "problems.jsonl",
        "*.jsonl",
        "./problems.jsonl",
        str(place / "problems.jsonl"),
        "ann/../problems.jsonl",
    ):
        check_paths_within(experiment(place, at("problems", value={"file": file})), [place])
    for model in ("student", "lab:student-tiny", "owner/name", "./student"):
        check_paths_within(experiment(place, at("student", "model", value=model)), [place])


def test_every_field_that_is_read_is_asked(place: Path) -> None:
    outside, file = str(place.parent), str(place.parent / "secret.jsonl")
    rows = {"name": "bob", "model": "r1", "completer": "corpus", "rationales": {"file": file}}
    engine = {"name": "bob", "model": "ann", "completer": "vllm", "engine": {"engine_args": {"download_dir": outside}}}
    benchmark = {"name": "b", "file": file, "num_problems": 1}
    gym = {"gym": {"dataset": "chain_sum", "settings": {"word_file": file}}, "num_problems": 1}
    harness = {"name": "h", "tasks": ["t"], "include_path": outside}
    for field, change in {
        "student.model": at("student", "model", value=outside),
        "teachers.ann.model": at("teachers", 0, "model", value=outside),
        "teachers.bob.rationales.file": at("teachers", 1, value=rows),
        "teachers.bob.engine.engine_args.download_dir": at("teachers", 1, value=engine),
        "corpus.judge.model": at("corpus", "judge", value={"name": "judge", "model": outside}),
        "problems.file": at("problems", value={"file": file}),
        "problems.gym.settings.word_file": at("problems", value=gym),
        "evaluation.benchmarks.b.file": at("evaluation", "benchmarks", 1, value=benchmark),
        "evaluation.harness.h.include_path": at("evaluation", "harness", value=[harness]),
        "evaluation.harness.h.tasks": at("evaluation", "harness", value=[{"name": "h", "tasks": [file]}]),
        "merge.parameters.file": at("merge", value={"rule": "tests.grading.graders:x", "parameters": {"file": file}}),
    }.items():  # fmt: skip
        message = refused(place, field, change)
        assert f"lies outside of what a spec may name here: {place}; move it below one of them" in message, message
        assert "MOT_DATA_ROOTS" in message


@pytest.mark.parametrize(
    "file",
    [
        "../secret.jsonl", "ann/../../secret.jsonl", "/etc/passwd", "~/x.jsonl", "a*/../../secret.jsonl", "../*.jsonl", "/*",
        "*/../../secret.json?*", "x\0y*", "x\0", "~nobody-is-called-so/x", "a" * 300 + ".jsonl", "//etc/passwd", "student/../../*",
    ],
)  # fmt: skip
def test_a_path_that_leads_out_is_refused(place: Path, file: str) -> None:
    refused(place, "problems.file", at("problems", value={"file": file}))


def test_a_link_that_leads_out_is_refused(place: Path) -> None:
    (place / "linked.jsonl").symlink_to(place.parent / "secret.jsonl")
    (place / "folder").symlink_to(place.parent)
    (place / "loop").symlink_to("loop")
    message = refused(place, "problems.file", at("problems", value={"file": "linked.jsonl"}))
    assert f"'linked.jsonl' is '{place.parent / 'secret.jsonl'}', which lies outside" in message
    for file in ("link*.jsonl", "folder/secret.jsonl", "folder/*.jsonl", "f*/secret.jsonl", "loop"):
        refused(place, "problems.file", at("problems", value={"file": file}))
    (place / "student" / "generation_config.json").unlink()
    (place / "student" / "generation_config.json").symlink_to(place.parent / "secret.jsonl")
    refused(place, "student.model", lambda document: None)
    check_paths_within(experiment(place), [place, place.parent])


def test_a_directory_with_a_hub_ids_name_is_a_path(place: Path) -> None:
    (place / "owner").mkdir()
    (place / "owner" / "name").symlink_to(place.parent)
    refused(place, "student.model", at("student", "model", value="owner/name"))


@pytest.mark.parametrize(
    "model", ["../x", "../..", "owner/../..", "./../x", "~root/x", "/x/y", "a/b/../../../x", "a\0/b"]
)
def test_what_is_no_hub_id_is_a_path(place: Path, model: str) -> None:
    refused(place, "student.model", at("student", "model", value=model))


def test_an_endpoints_or_a_corpus_teachers_model_is_no_path(place: Path) -> None:
    teacher = {"name": "bob", "model": "/models/x", "completer": "openai", "endpoint": {"base_url": "http://h/v1"}}
    check_paths_within(experiment(place, at("teachers", 1, value=teacher)), [place])
    rows = {"name": "bob", "model": "/r1", "completer": "corpus", "rationales": {"file": "problems.jsonl"}}
    check_paths_within(experiment(place, at("teachers", 1, value=rows)), [place])


def test_roots_are_the_working_directory_the_store_and_the_variables(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOT_DATA_ROOTS", raising=False)
    assert data_roots(tmp_path / "store") == [place, tmp_path / "store"]
    monkeypatch.setenv("MOT_DATA_ROOTS", os.pathsep.join(["/data", "", "/more"]))
    assert data_roots(tmp_path / "store") == [place, tmp_path / "store", Path("/data"), Path("/more")]


_PART = st.sampled_from(
    ["..", ".", "a", "student", "*", "?", "[a]", "**", "~", "secret.jsonl", "problems.jsonl", "", "\0"]
)


@given(st.lists(_PART, min_size=1, max_size=6).map("/".join))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_passes_is_read_from_within(place: Path, file: str) -> None:
    spec = experiment(place, at("problems", value={"file": file}))
    try:
        check_paths_within(spec, [place])
    except SpecError:
        return
    try:
        files_identity(file, "problems.file")
    except (ProblemError, IsADirectoryError):
        return
    path = Path(file).expanduser().absolute()
    found = Path(path.anchor).glob(str(path.relative_to(path.anchor))) if "*" in file else [path]
    assert all(one.resolve().is_relative_to(place) for one in found)


@pytest.mark.parametrize("pattern", ["../../*", "/etc/*", "data/../../x"])
def test_a_hubs_files_are_the_repositorys(pattern: str) -> None:
    with pytest.raises(ValidationError, match="leads out of the repository; give a pattern from its top"):
        Table(hub="owner/name", data_files=pattern)


@pytest.mark.parametrize("text", ["a" * 5000, "~nobody-is-called-so/x", "a/" + "b" * 5000])
def test_a_name_that_no_file_can_have_is_an_error_of_ours(pico_models: Path, text: str) -> None:
    for change in (at("student", "model", value=text), at("problems", value={"file": text})):
        document = pico_document(pico_models)
        change(document)
        spec = Experiment.model_validate(document)
        if text.startswith("a/") and spec.problems.file is None:
            resolve(spec)  # a hub id, which the hub will not know
            continue
        with pytest.raises(MotError):
            resolve(spec)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_on_the_command_line_are_refused(pico_models: Path, name: str) -> None:
    for key in ("name", "teachers.0.name", "methods.0.name", "evaluation.benchmarks.0.name"):
        document = pico_document(pico_models)
        inner: Any = document
        *places, last = key.split(".")
        for part in places:
            inner = inner[int(part) if part.isdigit() else part]
        inner[last] = name
        with pytest.raises(SpecError):
            spec_from_document(document, "here", Experiment)


def test_a_study_or_size_named_like_a_path_is_none() -> None:
    from flows.studies import study_named
    from flows.studies.base import setup_of

    for name in ("../presets/lab", "/no/such/file", "..", "a\0b"):
        with pytest.raises(SpecError, match="there is no study"):
            study_named(name)
        with pytest.raises(SpecError, match="has no size"):
            setup_of(study_named("rounds"), name)
        with pytest.raises(SpecError, match="neither a preset nor a YAML file"):
            load_spec(name)


# -- keys ------------------------------------------------------------------------------------------------


def with_endpoint(pico_spec: Experiment, **endpoint: Any) -> Experiment:
    document = pico_spec.model_dump(mode="json")
    document["teachers"][0] |= {"completer": "openai", "model": "big", "endpoint": endpoint}
    return Experiment.model_validate(document)


def test_a_form_sends_a_key_only_to_its_server(pico_spec: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [("MOT_TEACHER_KEY", "http://127.0.0.1:8001/v1")]
    check_keys_within(with_endpoint(pico_spec, base_url="https://anywhere.example/v1"), [])  # no key goes along
    check_keys_within(
        with_endpoint(pico_spec, base_url="http://127.0.0.1:8001/v1", api_key_env="MOT_TEACHER_KEY"), shipped
    )
    for variable, address in (
        ("HF_TOKEN", "http://127.0.0.1:8001/v1"), ("MOT_TEACHER_KEY", "https://elsewhere.example/v1"),
        ("MOT_TEACHER_KEY", "http://127.0.0.1:8001.elsewhere.example/v1"), ("MOT_TEACHER_KEY", "http://127.0.0.1/v1"),
    ):  # fmt: skip
        spec = with_endpoint(pico_spec, base_url=address, api_key_env=variable)
        with pytest.raises(
            SpecError, match=rf"teachers\..*\.endpoint: the key of {variable} would go to .*MOT_KEY_SERVERS"
        ):
            check_keys_within(spec, shipped)
        monkeypatch.setenv("MOT_KEY_SERVERS", f"A=https://a.example {variable}={address}")
        check_keys_within(spec, shipped)
        monkeypatch.delenv("MOT_KEY_SERVERS")
