"""What is kept, what has to be computed and what goes: on graphs and stores made up here, and on random ones."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import mot_core.removal
from flows.parts import evaluate_model, verify_rationales
from flows.run import RunOptions, outline_of, run
from flows.studies.base import Cell, Findings, Options, Setup, Study
from flows.studies.run import run_study
from flows.tune import tune
from mot_core.artifacts import Published, Store
from mot_core.claims import claims_of, pin
from mot_core.errors import StoreError
from mot_core.files import write_atomically
from mot_core.merging.stage import STATE_DIR
from mot_core.prepare import world_of
from mot_core.removal import remove_unwanted
from mot_core.retention import OPTIMIZER_STATE, RULE_STATE, Place, kept_places, to_compute, weights_read
from mot_core.runs import new_run_dir, write_index, write_steps
from mot_core.sft.optimizers import STATE_FILE
from mot_core.spec import Experiment
from mot_core.steps import Step, walk
from mot_core.workers.pool import WorkerPool
from mot_core.world import World, resolve
from tests.pico import pico_experiment
from tests.processes import ROOT

WEIGHTS = b"w" * 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def publish(store: Store, *steps: Step) -> None:
    """Steps with a student, optimizer state and a snapshot each, and small files beside them."""

    def compute(work_dir: Path) -> dict[str, Any]:
        for name in ("model.safetensors", "optimizer/state.safetensors", "snapshots/step-4/model.safetensors"):
            (work_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (work_dir / name).write_bytes(WEIGHTS)
        (work_dir / "snapshots" / "step-4" / "config.json").write_text("{}")
        (work_dir / "training.jsonl").write_text("{}\n")
        return {"number": 1}

    for step in steps:
        store.obtain(step, compute)


def path_of(rounds: int) -> tuple[list[Step], list[Step]]:
    """Branches and merges of a path with two branches a round."""
    branches: list[Step] = []
    merges: list[Step] = []
    for r in range(rounds):
        start = (("student", merges[-1]),) if merges else ()
        pair = [Step("branch", {"r": r, "of": name}, start, label=f"branch {name} {r}") for name in "ab"]
        parents = (*start, *((f"branch/{name}", one) for name, one in zip("ab", pair, strict=True)))
        merges.append(Step("merge", {"r": r}, parents, label=f"merge {r}"))
        branches += pair
    return branches, merges


def record_run(
    store: Store, name: str, keep: str | None, merges: list[Step], extra: Iterable[Step] = (), *, finished: bool = True,
    locator: str = "lab:student",
) -> Path:  # fmt: skip
    """A run of a path, as its index has it."""
    run_dir = store.root / "runs" / name
    run_dir.mkdir()
    students = [
        {"student": {"identity": merge.identity, "subdirectory": None, "locator": None}, "is_final": merge is merges[-1],
         "merges": [{"identity": one.identity, "round": 1} for one in merges]}
        for merge in merges
    ]  # fmt: skip
    steps = [{"identity": step.identity} for step in walk([*merges, *extra])]
    world = {"student": {"locator": locator}, "models": {}}
    spec = {"keep": keep} if keep is not None else {}
    write_index(run_dir, {"spec": spec, "students": students, "steps": steps, "world": world})
    if finished:
        (run_dir / "summary.json").write_text("{}")
    return run_dir


def left(store: Store, step: Step) -> list[str]:
    """The weights of a step that are there."""
    directory = store.object_dir(step.identity)
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.safetensors"))


WHOLE = ["model.safetensors", "optimizer/state.safetensors", "snapshots/step-4/model.safetensors"]


# -- policies on a store -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, "all", "merged", "last"])
def test_each_policy_leaves_what_it_says_and_every_small_file(store: Store, keep: str | None) -> None:
    branches, merges = path_of(2)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", keep, merges)
    found = remove_unwanted(store)
    expected = {
        None: (WHOLE, WHOLE, WHOLE), "all": (WHOLE, WHOLE, WHOLE), "merged": ([], WHOLE, WHOLE),
        "last": ([], [], ["model.safetensors"]),
    }[keep]  # fmt: skip
    assert [left(store, branches[0]), left(store, merges[0]), left(store, merges[1])] == list(expected)
    assert found.num_bytes == {None: 0, "all": 0, "merged": 12_000, "last": 17_000}[keep]
    for step in (*branches, *merges):
        directory = store.object_dir(step.identity)
        assert {"manifest.json", "training.jsonl"} <= {path.name for path in directory.iterdir()}
        assert (directory / "snapshots" / "step-4" / "config.json").is_file()
        manifest = store.manifest(step.identity)
        assert manifest is not None and manifest.counts == {"number": 1} and len(manifest.files) == 5
        assert store.damaged_files(manifest) == []
        assert (store.find(step.identity) is None) == (left(store, step) != WHOLE)
        light = store.find(step.identity, whole=False)
        assert light is not None and sorted([*light.removed, *left(store, step)]) == WHOLE
    assert remove_unwanted(store).removals == []


def test_a_file_that_is_missing_without_a_record_is_damage(store: Store) -> None:
    branches, merges = path_of(1)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "last", merges)
    remove_unwanted(store)
    (store.object_dir(merges[0].identity) / "model.safetensors").unlink()
    manifest = store.manifest(merges[0].identity)
    assert manifest is not None and store.damaged_files(manifest) == ["model.safetensors is missing"]
    assert store.find(merges[0].identity, whole=False) is None


def test_a_step_that_is_computed_again_is_whole_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    branches, merges = path_of(1)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "last", merges)
    remove_unwanted(store)
    with caplog.at_level("INFO", "mot.store"):
        publish(store, branches[0])
    assert "removed by mot gc; the step will be redone" in caplog.text and "redone: the same content" in caplog.text
    assert left(store, branches[0]) == WHOLE and store.find(branches[0].identity) is not None


def test_the_newest_run_of_a_spec_speaks_for_all_and_an_unfinished_one_keeps_all(store: Store) -> None:
    branches, merges = path_of(1)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "all", merges)
    record_run(store, "x-12345678-002", "last", merges, finished=False)
    (found,) = remove_unwanted(store).stays
    assert (found.claim, found.keeps, found.num_steps) == ("x-12345678 (2 runs)", "all (it has not finished)", 3)
    record_run(store, "x-12345678-003", "last", merges)
    (store.root / "runs" / "x-12345678-004").mkdir()  # ended before anything was planned
    assert remove_unwanted(store).num_bytes == 8_000
    assert [left(store, step) for step in (*branches, *merges)] == [[], [], ["model.safetensors"]]


def test_the_newest_run_is_the_highest_whichever_was_forgotten(store: Store) -> None:
    branches, merges = path_of(1)
    publish(store, *branches, *merges)
    for _ in range(2):
        run_dir = new_run_dir(store, "x", "12345678")
        run_dir.rmdir()
        record_run(store, run_dir.name, "last", merges)
    remove_unwanted(store, ["x-12345678-001"])
    publish(store, *branches, *merges)
    run_dir = new_run_dir(store, "x", "12345678")
    assert run_dir.name == "x-12345678-003"
    run_dir.rmdir()
    record_run(store, run_dir.name, "all", merges)
    assert remove_unwanted(store).removals == []
    (store.root / "runs" / "x-12345678-1000").mkdir()
    (store.root / "runs" / "x-12345678-of-mine").mkdir()
    assert new_run_dir(store, "x", "12345678").name == "x-12345678-1001"


def test_what_another_run_keeps_stays(store: Store) -> None:
    branches, merges = path_of(2)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "last", merges)
    record_run(store, "y-12345678-001", "all", merges[:1])
    stays = {stay.claim: stay for stay in remove_unwanted(store).stays}
    assert [left(store, branches[0]), left(store, merges[0]), left(store, branches[2])] == [WHOLE, WHOLE, []]
    small = sum(facts["size"] for facts in store.manifest(merges[0].identity).files.values()) - 3000  # type: ignore[union-attr]
    assert stays["y-12345678-001"].num_bytes == 9_000 + 3 * small
    assert (stays["y-12345678-001"].num_bytes_alone, stays["x-12345678-001"].num_bytes_alone) == (
        9000,
        1000 + 3 * small,
    )


def test_steps_that_no_run_names_go_whole_and_journals_never(store: Store) -> None:
    branches, merges = path_of(1)
    stray, unfinished = Step("problems", {"seed": 9}, label="stray"), Step("problems", {"seed": 10})
    publish(store, *branches, *merges, stray)
    record_run(store, "x-12345678-001", "all", merges, extra=[unfinished])
    (store.root / "requests" / "scope").mkdir()
    (store.root / "requests" / "scope" / "rows.jsonl").write_text("{}\n")
    for step in (stray, unfinished, merges[0]):
        (store.root / "tmp" / f"{step.identity}.1" / ".checkpoint").mkdir(parents=True)
        store.log_path(step.identity).write_text("said\n")
    torn = store.object_dir("0" * 32)
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(WEIGHTS)
    found = remove_unwanted(store)
    assert {(one.what, one.label) for one in found.removals} == {
        ("step", "stray"), ("unfinished work", "0" * 32), ("unfinished work", stray.identity),
        ("unfinished work", merges[0].identity), ("log", stray.identity),
    }  # fmt: skip
    assert not store.object_dir(stray.identity).exists() and not torn.exists()
    assert [path.name for path in (store.root / "tmp").iterdir()] == [f"{unfinished.identity}.1"]
    assert {path.stem for path in (store.root / "logs").iterdir()} == {unfinished.identity, merges[0].identity}
    assert (store.root / "requests" / "scope" / "rows.jsonl").read_text() == "{}\n"


def test_a_run_is_forgotten_by_its_id_or_with_all_runs_of_its_spec(store: Store) -> None:
    branches, merges = path_of(1)
    other, others = path_of(2)
    publish(store, *branches, *merges, *other[2:], others[1])
    for name, path in (("x-12345678-001", merges), ("x-12345678-002", merges), ("y-12345678-001", others)):
        record_run(store, name, "all", path)
    with pytest.raises(StoreError, match=r"no run 'y-12345678-01' to forget in .*did you mean 'y-12345678-001'\?"):
        remove_unwanted(store, ["y-12345678-01"])
    # What it alone needs goes; the rest is still of another run.
    found = remove_unwanted(store, ["y-12345678-001"])
    assert {one.label for one in found.removals if one.what == "step"} == {"branch a 1", "branch b 1", "merge 1"}
    assert [path.name for path in sorted((store.root / "runs").iterdir())] == ["x-12345678-001", "x-12345678-002"]
    assert left(store, merges[0]) == WHOLE
    remove_unwanted(store, ["x-12345678"])
    assert not list((store.root / "runs").iterdir()) and not list((store.root / "objects").iterdir())


def test_sweeps_and_studies_hold_what_their_own_record_names(store: Store) -> None:
    branches, merges = path_of(1)
    probe = Step("landscape", {"x": 1}, (("student", merges[0]),), label="probe")
    publish(store, *branches, *merges, probe)
    run_dir = store.root / "runs" / "tune-x-12345678"
    write_steps(run_dir, [*branches, *merges, probe], (), "last", finished=False)
    assert remove_unwanted(store).removals == []
    write_steps(run_dir, [*branches, *merges, probe], (), "last", finished=True)
    assert remove_unwanted(store).num_bytes == 12_000
    assert [left(store, step) for step in (*branches, *merges, probe)] == [[], [], [], []]
    assert len(list(store.manifests())) == 4


def test_a_cell_keeps_the_student_that_it_started_from(store: Store) -> None:
    branches, merges = path_of(2)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "last", merges)
    place = store.object_dir(merges[0].identity) / "snapshots" / "step-4"
    later = store.root / "runs" / "study-y-lab-12345678-001" / "cells" / "second"
    later.mkdir(parents=True)
    world = {"student": {"locator": str(place)}, "models": {"t": {"locator": "https://127.0.0.1/v1"}}}
    write_index(later, {"spec": {"keep": "last"}, "students": [], "steps": [], "world": world})
    remove_unwanted(store)
    assert left(store, merges[0]) == ["snapshots/step-4/model.safetensors"]
    remove_unwanted(store, ["x-12345678-001"])
    assert {manifest.label for manifest in store.manifests()} == {"merge 0"}


class Interrupted(Exception):
    """What ends a run before its first step."""


def begin_study(spec: Experiment, options: RunOptions) -> None:
    def unread(findings: Findings) -> Any:
        raise AssertionError("it ended before there were findings")

    one = Study(
        "one", "claim", "question", Options, (lambda setup, findings: [Cell("only", spec)],), unread, unread, unread
    )
    run_study(one, Setup("smoke", spec, Options()), options)


@pytest.mark.parametrize("begin", [tune, evaluate_model, verify_rationales, begin_study])
def test_a_student_that_was_taken_as_a_model_stays_however_early_its_taker_ended(
    store: Store, pico_models: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Experiment, RunOptions], Any]
) -> None:
    def interrupt(*_: Any) -> None:
        raise Interrupted

    monkeypatch.setattr("flows.orchestrate.in_flow_run", interrupt)
    monkeypatch.setattr(WorkerPool, "start", lambda pool: None)

    def copy(to: Path) -> dict[str, Any]:
        shutil.copytree(pico_models / "student", to, dirs_exist_ok=True)
        return {}

    model = store.obtain(Step("merge", {}), copy)
    publish(store, Step("merge", {"nobody": "names it"}))
    student = {"name": "student", "model": str(model.path)}
    tuning = {"learning_rates": [1e-3]}
    with pytest.raises(Interrupted):
        begin(pico_experiment(pico_models, student=student, tuning=tuning), RunOptions(store.root, workers=1))
    remove_unwanted(store)
    assert store.find(model.identity) is not None
    assert [manifest.spec for manifest in store.manifests() if manifest.kind == "merge"] == [{}]


def test_a_pin_keeps_a_student_whatever_becomes_of_its_run(store: Store) -> None:
    branches, merges = path_of(2)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "last", merges)
    for _ in range(2):
        pin(store, merges[0].identity, None, "registered as sums")
    pin(store, merges[0].identity, "snapshots/step-4", "registered as inside")
    found = remove_unwanted(store, ["x-12345678-001"])
    assert left(store, merges[0]) == ["model.safetensors", "snapshots/step-4/model.safetensors"]
    assert [manifest.label for manifest in store.manifests()] == ["merge 0"]
    assert [stay.claim for stay in found.stays] == [
        f"pin {merges[0].identity[:12]}: registered as sums", f"pin {merges[0].identity[:12]}: registered as inside"
    ]  # fmt: skip


def test_two_pins_at_once_are_both_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Thread(target=pin, args=(store, "0" * 32, None, "second"))

    def write(path: Path, text: str) -> None:
        if "second" not in text:
            second.start()
            second.join(0.5)
        write_atomically(path, text)

    monkeypatch.setattr("mot_core.claims.write_atomically", write)
    pin(store, "0" * 32, None, "first")
    second.join(60.0)
    assert [claim.name for claim in claims_of(store)] == ["pin 000000000000: first; second"]


def test_a_record_that_cannot_be_read_stops_the_removal(store: Store, tmp_path: Path) -> None:
    branches, merges = path_of(1)
    publish(store, *branches, *merges)
    run_dir = record_run(store, "x-12345678-001", "last", merges)
    (run_dir / "index.json").write_text("{")
    with pytest.raises(StoreError, match=r"index.json cannot be read .*nothing is removed; mend it, or remove it"):
        remove_unwanted(store)
    assert left(store, branches[0]) == WHOLE
    with pytest.raises(StoreError, match="is no store of ours"):
        remove_unwanted(Store(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


# -- safety ------------------------------------------------------------------------------------------------


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_a_dry_run_touches_nothing(store: Store) -> None:
    branches, merges = path_of(2)
    publish(store, *branches, *merges, Step("problems", {"seed": 9}))
    record_run(store, "x-12345678-001", "last", merges)
    before = state_of(store.root)
    with store.in_use("a run"):
        during = state_of(store.root)
        told = remove_unwanted(store, dry_run=True)
        assert state_of(store.root) == during
    assert len(told.users) == 1 and told.users[0].startswith("a run (process ")
    assert {path: facts for path, facts in state_of(store.root).items() if "/locks" not in path} == {
        path: facts for path, facts in before.items() if "/locks" not in path
    }
    done = remove_unwanted(store)
    assert (done.removals, done.stays) == (told.removals, told.stays)


HOLDER = textwrap.dedent(
    """
    import sys, time
    from mot_core.artifacts import Store
    from mot_core.steps import Step
    def slow(work_dir):
        print("computing", flush=True)
        time.sleep(600)
    Store(sys.argv[1]).obtain(Step("problems", {"seed": 1}, label="slow problems"), slow)
    """
)


def test_whoever_computes_keeps_removals_out_until_it_ends_or_is_killed(store: Store) -> None:
    branches, merges = path_of(1)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "last", merges)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.root)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "computing\n"
        with pytest.raises(
            StoreError, match=rf"is in use: slow problems \(process {holder.pid} on .*Nothing was removed"
        ):
            remove_unwanted(store)
        assert left(store, branches[0]) == WHOLE
        holder.kill()
    assert len(list((store.root / "locks").glob("use-*"))) == 1, "what a killed user leaves"
    assert remove_unwanted(store).num_bytes == 8_000
    assert not list((store.root / "locks").glob("use-*"))


@pytest.mark.parametrize(
    ("module", "begin"), [("run", run), ("tune", tune), ("parts", verify_rationales), ("studies.run", begin_study)]
)
def test_nothing_goes_while_models_are_looked_up(
    store: Store, pico_models: Path, monkeypatch: pytest.MonkeyPatch, module: str,
    begin: Callable[[Experiment, RunOptions], Any],
) -> None:  # fmt: skip
    """A model may lie in the store, and before the run is on record nothing names it."""
    users: list[str] = []

    def look(spec: Experiment) -> World:
        with pytest.raises(StoreError, match=r"is in use: (pico, being prepared|study-one-smoke-\w+-001) \(process "):
            remove_unwanted(store)
        return resolve(spec)

    def interrupt(*_: Any) -> None:
        users.extend(remove_unwanted(store, dry_run=True).users)
        raise Interrupted

    monkeypatch.setattr(f"flows.{module}.resolve", look)
    monkeypatch.setattr("flows.orchestrate.in_flow_run", interrupt)
    monkeypatch.setattr(WorkerPool, "start", lambda pool: None)
    with pytest.raises(Interrupted):
        begin(pico_experiment(pico_models, methods=[{"name": "base"}, {"name": "mot"}]), RunOptions(store.root))
    [user] = users  # from then on under the run's own name
    assert re.match(r"(tune-|part-|study-)?(pico|one-smoke)-\w+", user), user
    assert remove_unwanted(store, dry_run=True).users == []


USER = textwrap.dedent(
    """
    import sys
    from mot_core.artifacts import Store
    print("waiting", flush=True)
    with Store(sys.argv[1]).in_use("a run"):
        print("in", flush=True)
    """
)


def test_a_user_that_comes_during_a_removal_waits_and_two_removals_do_not_meet(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mot_core.users.GATE_SECONDS", 0.0)
    from mot_core.users import alone

    with subprocess.Popen(
        [sys.executable, "-c", USER, str(store.root)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as user:
        assert user.stdout is not None
        with alone(store.root / "locks"):
            assert user.stdout.readline() == "waiting\n"
            with pytest.raises(StoreError, match="another mot gc is at work"), alone(store.root / "locks"):
                pass
            with pytest.raises(subprocess.TimeoutExpired):
                user.wait(timeout=1.0)
        assert user.stdout.readline() == "in\n"


@pytest.mark.parametrize("calls", range(12))
def test_a_removal_killed_anywhere_is_started_again(store: Store, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Killed before its `calls`-th change of the disk; what is left is whole or absent on record, and a second one ends it."""
    branches, merges = path_of(2)
    publish(store, *branches, *merges, Step("problems", {"seed": 9}), Step("problems", {"seed": 10}))
    record_run(store, "x-12345678-001", "last", merges)
    record_run(store, "y-12345678-001", "last", merges[:1])
    num_calls = 0

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls > calls:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(mot_core.removal.shutil, "rmtree", counted(mot_core.removal.shutil.rmtree))
        patch.setattr(mot_core.removal, "write_atomically", counted(mot_core.removal.write_atomically))
        remove_unwanted(store, ["y-12345678-001"])
    for manifest in store.manifests():
        if manifest.kind in ("branch", "merge"):
            assert store.damaged_files(manifest) == []
    remove_unwanted(store, ["y-12345678-001"] if (store.root / "runs" / "y-12345678-001").exists() else [])
    assert {manifest.label for manifest in store.manifests()} == {step.label for step in (*branches, *merges)}
    assert [left(store, step) for step in (*branches, *merges)] == [[]] * 5 + [["model.safetensors"]]
    assert not list((store.root / "locks").glob("use-*"))


# -- what has to be computed -------------------------------------------------------------------------------


def test_what_a_step_reads_of_its_parents() -> None:
    inside = Step("evaluation", {"student_subdirectory": "snapshots/step-4", "to/1_subdirectory": "snapshots/step-8"})
    roles = ("student", "branch/ann", "optimizer/0", "previous", "to/0", "to/1", "problems")
    assert [weights_read(inside, role) for role in roles] == [
        "snapshots/step-4", ".", "optimizer", "rule_state", ".", "snapshots/step-8", None
    ]  # fmt: skip
    assert weights_read(Step("evaluation", {}), "student") == "."
    assert Path(STATE_FILE).parent.name == OPTIMIZER_STATE and RULE_STATE == STATE_DIR


def test_of_every_parent_with_weights_it_is_known_which_are_read(pico_models: Path) -> None:
    methods = [{"name": name} for name in ("std", "mtd", "merge_once", "mot", "shuffled", "splits", "shrunk")]
    training = {"batch_size": 2, "learning_rate": 1e-3, "optimizer_between_rounds": "average"}
    merge = {"rule": "outer", "barrier": {"num_examples": 2}}
    spec = pico_experiment(pico_models, methods=methods, training=training, merge=merge)
    _, steps = outline_of(spec, world_of(spec))
    read = {(role.partition("/")[0], weights_read(step, role))
            for step in steps for role, parent in step.parents if parent.kind in ("branch", "on-policy", "merge")}  # fmt: skip
    assert read == {
        ("student", "."), ("student", "snapshots/step-4"), ("branch", "."), ("optimizer", "optimizer"), ("previous", "rule_state")
    }  # fmt: skip


def published(step: Step, *removed: str) -> Published:
    return Published(step.identity, step.kind, Path(), removed=removed)


def test_only_what_a_missing_step_reads_is_computed_again() -> None:
    branches, merges = path_of(3)
    steps = list(walk(merges))
    light = {step.identity: published(step, "model.safetensors") for step in steps}
    assert to_compute(steps, light) == {}
    # Another evaluation of the second round's student: that round is computed again, from the first one's student.
    asked = Step("evaluation", {}, (("student", merges[1]),), label="asked")
    found: dict[str, Published | None] = {**light, merges[0].identity: published(merges[0])}
    again = to_compute([*steps, asked], {**found, asked.identity: None})
    assert again == {
        asked.identity: "not published", merges[1].identity: "asked reads them",
        branches[2].identity: "merge 1 reads them", branches[3].identity: "merge 1 reads them",
    }  # fmt: skip
    # A snapshot that is still there is read, whatever else of its step was removed.
    inside = Step("evaluation", {"student_subdirectory": "snapshots/step-4"}, (("student", merges[2]),))
    assert set(to_compute([*steps, inside], {**light, inside.identity: None})) == {inside.identity}
    assert to_compute(steps, light, [(merges[2].identity, "snapshots/step-4")]) == {}
    assert to_compute(steps, light, [(merges[2].identity, ".")])[merges[2].identity] == "the spec keeps them (keep)"


def random_graph(chance: random.Random) -> list[Step]:
    """Up to 25 steps, parents first, with weights in up to two places each."""
    steps: list[Step] = []
    for number in range(chance.randrange(3, 25)):
        roles = ["student", "previous", *(f"branch/{index}" for index in range(3)), "optimizer/0"]
        parents = chance.sample(steps, min(len(steps), chance.randrange(4)))
        spec: dict[str, Any] = {"number": number}
        if chance.random() < 0.3:
            spec["student_subdirectory"] = "snapshots/step-4"
        pairs = tuple(zip(chance.sample(roles, len(parents)), parents, strict=True))
        steps.append(Step("branch", spec, pairs, label=str(number)))
    return steps


def simulate(steps: list[Step], there: dict[str, set[str] | None], wanted: set[str]) -> bool:
    """Whether computing exactly the `wanted` steps works: each finds the weights that it reads."""
    held = {identity: set(files) for identity, files in there.items() if files is not None}
    for step in steps:
        if step.identity not in wanted:
            if step.identity not in held:
                return False
            continue
        for role, parent in step.parents:
            directory = weights_read(step, role)
            needed = {one for one in WHOLE if directory is None or str(Path(one).parent) == directory}
            if not needed <= held.get(parent.identity, set()):
                return False
        held[step.identity] = set(WHOLE)
    return True


@pytest.mark.parametrize("seed", range(60))
def test_on_random_graphs_the_least_that_works_is_computed(seed: int) -> None:
    chance = random.Random(seed)
    steps = random_graph(chance)
    there: dict[str, set[str] | None] = {
        step.identity: None if chance.random() < 0.2 else {name for name in WHOLE if chance.random() < 0.5}
        for step in steps
    }
    found = {
        step.identity: None if (files := there[step.identity]) is None else published(step, *(set(WHOLE) - files))
        for step in steps
    }
    wanted = set(to_compute(steps, found))
    assert simulate(steps, there, wanted)
    for one in wanted:
        assert not simulate(steps, there, wanted - {one}), "it works without this one"


@pytest.mark.parametrize("seed", range(25))
def test_on_random_stores_what_goes_is_what_nobody_keeps(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    steps = random_graph(chance)[:10]
    publish(store, *steps)
    kept: dict[str, set[str]] = {}
    for number in range(chance.randrange(1, 4)):
        keep = chance.choice(["all", "merged", "last"])
        path = sorted(chance.sample(steps, chance.randrange(1, min(4, len(steps)) + 1)), key=steps.index)
        record_run(store, f"r{number}-12345678-001", keep, path)
        for step in walk(path):
            files = kept.setdefault(step.identity, set())
            if keep == "all" or (keep == "merged" and step in path):
                files.update(WHOLE)
            elif step is path[-1]:
                files.add("model.safetensors")
    remove_unwanted(store)
    assert {manifest.identity for manifest in store.manifests()} == set(kept)
    for step in steps:
        if step.identity in kept:
            assert set(left(store, step)) == kept[step.identity]
    # Each run finds all that it keeps: nothing is to be computed.
    for claim in claims_of(store):
        own = [step for step in steps if step.identity in claim.steps]
        found = {step.identity: store.find(step.identity, whole=False) for step in own}
        assert to_compute(own, found, claim.places) == {}


def test_policies_by_hand() -> None:
    finals = [("m2", None), ("b", "snapshots/step-4"), ("outside", None)]
    steps = {"b", "m1", "m2"}
    last: set[Place] = {("m2", "."), ("b", "snapshots/step-4")}
    assert kept_places("last", steps, ["m1", "m2"], finals) == last
    assert kept_places("merged", steps, ["m1", "m2"], finals) == last | {("m1", None), ("m2", None)}
    assert kept_places("all", steps, [], finals) == {(step, None) for step in steps}


def test_the_record_of_what_was_removed_grows(store: Store) -> None:
    branches, merges = path_of(1)
    publish(store, *branches, *merges)
    record_run(store, "x-12345678-001", "merged", merges)
    remove_unwanted(store)
    record_run(store, "x-12345678-002", "last", merges)
    remove_unwanted(store)
    record = json.loads(store.removed_path(merges[0].identity).read_text())
    assert record["files"] == WHOLE[1:] and record["why"].startswith("x-12345678 (2 runs) keeps last")
