"""Students in a real model registry: card, hash, lineage, and one version a student."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from mot_core.artifacts import Store
from mot_core.claims import claims_of
from mot_core.errors import SpecError, StoreError
from mot_core.files import sha256_of
from mot_core.removal import remove_unwanted
from mot_core.runs import read_index
from tasks.registry import promote_student
from tasks.tracking import TrackingOutcome, track_run


@pytest.fixture
def run_dir(two_runs: tuple[str, list[Path]], monkeypatch: pytest.MonkeyPatch) -> Path:
    uri, (first, _) = two_runs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(Path(uri.removeprefix("sqlite:///")).parent)
    return first


def client_of(two_runs: tuple[str, list[Path]]) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=two_runs[0])


def test_a_version_has_card_hash_and_lineage(two_runs: tuple[str, list[Path]], run_dir: Path) -> None:
    store = Store(run_dir.parent.parent)
    said = CliRunner().invoke(
        app, ["promote", run_dir.name, "mot", "--name", "pico mot", "--alias", "champion", "--store", str(store.root)]
    )
    assert said.exit_code == 0 and said.output.strip() == "pico mot version 1, alias champion", said.output
    client = client_of(two_runs)
    version = client.get_model_version_by_alias("pico mot", "champion")
    (student,) = [one for one in read_index(run_dir)["students"] if one["method"] == "mot" and one["is_final"]]
    place = store.object_dir(student["student"]["identity"])
    assert version.tags["mot.uri"] == place.as_uri() and version.tags["mot.run_id"] == run_dir.name
    assert version.tags["mot.sha256"] == sha256_of(place / "model.safetensors")
    lineage = json.loads(version.tags["mot.lineage"])
    assert lineage["merges"] == [merge["identity"] for merge in student["merges"]] and len(lineage["branches"]) == 4
    assert "license" in version.description and "ann" in version.description
    # What is registered stays, even if its run is forgotten.
    (pinned,) = [claim for claim in claims_of(store, without=[run_dir.name]) if claim.name.startswith("pin ")]
    assert pinned.name.endswith(": registered as pico mot (mot promote)")
    assert pinned.places == {(student["student"]["identity"], ".")}
    source = client.get_run(version.run_id)
    assert source.data.tags["mot.method"] == "mot" and version.source.startswith("models:/")


def test_nothing_is_removed_between_verifying_weights_and_pinning_them(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(run_dir.parent.parent)

    def track(store: Store, run_dir: Path) -> TrackingOutcome:
        with pytest.raises(StoreError, match="is in use: mot promote, as kept .*Nothing was removed"):
            remove_unwanted(store)
        return track_run(store, run_dir)

    monkeypatch.setattr("tasks.registry.track_run", track)
    assert promote_student(store, run_dir, "mot", "kept") == 1


def test_one_version_a_student_and_an_alias_moves(two_runs: tuple[str, list[Path]], run_dir: Path) -> None:
    store = Store(run_dir.parent.parent)

    def promote(method: str, **more: Any) -> int:
        return promote_student(store, run_dir, method, "several", alias="best", **more)

    assert [promote("std/ann"), promote("mot"), promote("std/ann", seed=1, budget="matched_path")] == [1, 2, 1]
    client = client_of(two_runs)
    assert len(client.search_model_versions("name = 'several'")) == 2
    assert int(client.get_model_version_by_alias("several", "best").version) == 1


def test_the_stores_own_tracker_serves_where_none_is_set(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    shutil.copytree(run_dir.parent.parent, store.root)
    assert [promote_student(store, store.root / "runs" / run_dir.name, "mot", "own") for _ in range(2)] == [1, 1]
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert [path.name for path in tmp_path.iterdir()] == ["store"], "MLflow made a database of its own"


def test_what_cannot_be_promoted(two_runs: tuple[str, list[Path]], run_dir: Path, tmp_path: Path) -> None:
    store = Store(run_dir.parent.parent)
    with pytest.raises(StoreError, match="base is the untrained student"):
        promote_student(store, run_dir, "base", "x")
    with pytest.raises(StoreError, match="no final student of method 'mott'"):
        promote_student(store, run_dir, "mott", "x")
    for name, alias in (("a/b", None), ("x", "latest"), ("o'x", None)):
        with pytest.raises(SpecError, match="expected letters, digits, spaces"):
            promote_student(store, run_dir, "mot", name, alias=alias)
    copied = tmp_path / "store"
    shutil.copytree(store.root, copied)
    (student,) = [one for one in read_index(run_dir)["students"] if one["method"] == "mot" and one["is_final"]]
    weights = copied / "objects" / student["student"]["identity"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="is damaged: model.safetensors does not match its hash"):
        promote_student(Store(copied), copied / "runs" / run_dir.name, "mot", "x")
    assert not client_of(two_runs).search_registered_models("name = 'x'")
