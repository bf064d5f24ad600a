"""The store: what counts as done, through kills, damage, races, full and read-only disks."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mot_core.artifacts
from mot_core.artifacts import MANIFEST, Store
from mot_core.errors import StoreError
from mot_core.files import sha256_of, write_atomically
from mot_core.identity import ALGORITHM_VERSIONS
from mot_core.steps import Step
from tests.processes import ROOT, wait_until

STEP = Step("problems", {"seed": 1}, label="a step")


def write_three(work_dir: Path) -> dict[str, Any]:
    (work_dir / "three.txt").write_text("3")
    (work_dir / "sub").mkdir()
    (work_dir / "sub" / "four.txt").write_text("44")
    return {"number": 3}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def refuse(work_dir: Path) -> dict[str, Any]:
    raise AssertionError("computed although it is published")


def test_a_step_is_published_with_its_manifest_and_then_reused(store: Store) -> None:
    made = store.obtain(STEP, write_three)
    assert (made.reused, made.counts, made.path) == (False, {"number": 3}, store.object_dir(STEP.identity))
    manifest = store.manifest(STEP.identity)
    assert manifest is not None
    assert manifest.files == {
        "three.txt": {"sha256": "4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce", "size": 1},
        "sub/four.txt": {"sha256": sha256_of(made.path / "sub" / "four.txt"), "size": 2},
    }
    assert (manifest.kind, manifest.version, manifest.spec, manifest.parents) == (
        "problems",
        ALGORITHM_VERSIONS["problems"],
        {"seed": 1},
        [],
    )
    assert manifest.started <= manifest.ended and manifest.versions["torch"]
    again = store.obtain(STEP, refuse)
    assert (again.reused, again.counts) == (True, {"number": 3})
    assert not list((store.root / "tmp").iterdir())


def test_scratch_is_kept_between_attempts_and_half_written_files_are_not(store: Store) -> None:
    def half(work_dir: Path) -> dict[str, Any]:
        (work_dir / ".checkpoint").mkdir()
        (work_dir / ".checkpoint" / "state.json").write_text("1")
        (work_dir / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.obtain(STEP, half)
    assert store.manifest(STEP.identity) is None and store.find(STEP.identity) is None

    def rest(work_dir: Path) -> dict[str, Any]:
        assert sorted(path.name for path in work_dir.iterdir()) == [".checkpoint"]
        return write_three(work_dir)

    published = store.obtain(STEP, rest)
    assert sorted(path.name for path in published.path.iterdir()) == [MANIFEST, "sub", "three.txt"]


def test_a_kill_between_rename_and_manifest_leaves_nothing_published(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(directory: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mot_core.artifacts, "sync_directory", die)
        with pytest.raises(KeyboardInterrupt):
            store.obtain(STEP, write_three)
    assert (store.object_dir(STEP.identity) / "three.txt").is_file(), "the kill came after the rename"
    assert store.find(STEP.identity) is None and list(store.manifests()) == []
    calls = []
    assert not store.obtain(STEP, lambda work_dir: (calls.append(1), write_three(work_dir))[1]).reused
    assert calls == [1] and store.find(STEP.identity) is not None


def test_an_atomic_write_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")

    def fail(source: object, target: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"):
        patch.setattr(os, "replace", fail)
        write_atomically(path, "new")
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_text("7"), "three.txt does not match its hash"),
        (lambda path: path.write_text("33"), "three.txt has 2 bytes, expected 1"),
        (lambda path: path.unlink(), "three.txt is missing"),
    ],
    ids=["one byte flipped", "longer", "gone"],
)
def test_a_damaged_file_is_found_named_and_redone(
    store: Store, caplog: pytest.LogCaptureFixture, damage: Any, told: str
) -> None:
    made = store.obtain(STEP, write_three)
    damage(made.path / "three.txt")
    with caplog.at_level(logging.WARNING, "mot.store"):
        assert store.find(STEP.identity) is None
    assert told in caplog.text and "the step will be redone" in caplog.text
    assert store.find(STEP.identity, verify=False) is not None
    redone = store.obtain(STEP, write_three)
    assert not redone.reused and (redone.path / "three.txt").read_text() == "3"
    assert "redone: the same content" in caplog.text


def test_a_redone_step_that_differs_says_so(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    made = store.obtain(STEP, write_three)
    (made.path / "three.txt").unlink()

    def other(work_dir: Path) -> dict[str, Any]:
        (work_dir / "three.txt").write_text("5")
        return {}

    with caplog.at_level(logging.WARNING, "mot.store"):
        store.obtain(STEP, other)
    assert "CONTENT DIFFERS" in caplog.text


@pytest.mark.parametrize("text", ["", '{"identity": "x', "[]", '{"identity": "x"}', "\x00\x00"])
def test_a_torn_manifest_is_no_manifest(store: Store, caplog: pytest.LogCaptureFixture, text: str) -> None:
    made = store.obtain(STEP, write_three)
    (made.path / MANIFEST).write_text(text)
    with caplog.at_level(logging.WARNING, "mot.store"):
        assert store.find(STEP.identity) is None
    assert "is damaged" in caplog.text
    assert not store.obtain(STEP, write_three).reused
    assert store.find(STEP.identity) is not None


RACER = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from mot_core.artifacts import Store
    from mot_core.steps import Step
    store = Store(sys.argv[1])
    def slow(work_dir):
        with open(sys.argv[2], "a") as file:
            file.write(f"{os.getpid()}\\n")
        (work_dir / "x").write_text("x")
        time.sleep(float(sys.argv[3]))
        return {"pid": os.getpid()}
    published = store.obtain(Step("problems", {"seed": 1}), slow)
    print("reused" if published.reused else "run", published.counts["pid"])
    """
)


def racer(store: Store, executions: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(store.root), str(executions), str(seconds)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_two_processes_never_do_one_step_twice(store: Store, tmp_path: Path) -> None:
    executions = tmp_path / "executions"
    racers = [racer(store, executions, 0.5) for _ in range(3)]
    outputs = sorted(process.communicate(timeout=300)[0].split()[0] for process in racers)
    pids = executions.read_text().split()
    assert outputs == ["reused", "reused", "run"] and len(pids) == 1


def test_a_dead_holders_lock_is_free_at_once(store: Store, tmp_path: Path) -> None:
    executions = tmp_path / "executions"
    holder = racer(store, executions, 600.0)
    wait_until(executions.exists, 300.0, "the holder computes")
    held = json.loads((store.root / "locks" / STEP.identity / "1").read_text())
    assert held["process"]["pid"] == holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    began = time.monotonic()
    made = store.obtain(Step("problems", {"seed": 1}), write_three)
    assert not made.reused and time.monotonic() - began < 45.0  # its lease would last for 60 s


def test_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).open()
    (tmp_path / "store.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match=r"its format is 99, this program understands up to 2; .*upgrade mot"):
        Store(tmp_path).open()


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a part of the path is a file, not a directory; give another --store"):
        Store(tmp_path / "file" / "store").open()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]).returncode != 0:
        pytest.skip("mounting needs a superuser")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.mount
def test_a_full_disk_stops_the_step_and_publishes_nothing(small_disk: Path) -> None:
    store = Store(small_disk / "store").open()
    store.obtain(Step("problems", {"seed": 2}), write_three)

    def too_much(work_dir: Path) -> dict[str, Any]:
        (work_dir / "big").write_bytes(b"x" * 2_000_000)
        return {}

    with pytest.raises(
        StoreError, match=r"problems .*the disk is full; free some space, then run the same command again"
    ):
        store.obtain(STEP, too_much)
    assert store.find(STEP.identity) is None
    assert [manifest.spec for manifest in store.manifests()] == [{"seed": 2}]
    # Once there is space again, the same call goes on.
    assert not store.obtain(STEP, write_three).reused


@pytest.mark.mount
def test_safetensors_own_disk_full_error_is_understood(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    store = Store(small_disk / "store").open()

    def too_much(work_dir: Path) -> dict[str, Any]:
        save_file({"weight": torch.zeros(1_000_000)}, work_dir / "model.safetensors")
        return {}

    with pytest.raises(StoreError, match="the disk is full"):
        store.obtain(STEP, too_much)
    assert list(store.manifests()) == []


@pytest.mark.mount
def test_a_full_disk_is_refused_at_opening(small_disk: Path) -> None:
    Store(small_disk / "store").open()
    with pytest.raises(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            if file.write(b"x" * 4096) < 4096:
                raise OSError("full")
    with pytest.raises(StoreError, match="the disk is full"):
        Store(small_disk / "store").open()
    with pytest.raises(StoreError, match="the disk is full"), Store(small_disk / "store").in_use("a run"):
        pass
    assert not list((small_disk / "store" / "locks").glob("use-*"))


@pytest.mark.mount
def test_a_read_only_store_is_refused(small_disk: Path) -> None:
    Store(small_disk / "store").open()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match="the file system is read-only; give a --store that can be written"):
        Store(small_disk / "store").open()
    with pytest.raises(StoreError, match="read-only"):
        Store(small_disk / "other").open()
