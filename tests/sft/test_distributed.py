"""A branch over two processes (FSDP2 over gloo, on a CPU) is the branch in one, to rounding; and it dies and goes on as one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mot_core.artifacts import Published, Store
from mot_core.errors import TrainingError, WorkerError
from mot_core.files import sha256_of
from mot_core.runner import RunSettings
from mot_core.sft import launch
from mot_core.sft.branch import BranchJob
from mot_core.sft.launch import _environment
from mot_core.sft.optimizers import STATE_FILE
from mot_core.spec import Training
from tests.sft.branches import TRAINING, branch, branch_step_of, log_of

pytestmark = pytest.mark.slow

STOP = {"held_out_share": 0.3, "every_steps": 2, "patience": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "layout": "packed", "micro_batch_tokens": 60, "loss": "chunked", "loss_chunk_tokens": 9, "batch_size": 3,
        "gradient_checkpointing": True, "offload_activations": True, "early_stop": STOP, "snapshot_steps": (3,),
        "extra": {"keeps_optimizer": True},
    },
    "adapters, bf16": {"lora": {"rank": 2}, "precision": "bfloat16"},
}  # fmt: skip
ROUNDING = {"default": 1e-5, "everything": 1e-4, "adapters, bf16": 2e-2}


def same_weights(one: Path, two: Path, rel: float) -> None:
    ours, theirs = load_file(one), load_file(two)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].shape == theirs[key].shape and ours[key].dtype == theirs[key].dtype
        assert float((ours[key] - theirs[key]).norm()) <= rel * float(theirs[key].norm()), key


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_are_one_to_rounding(pico_models: Path, tmp_path: Path, name: str) -> None:
    student, events = pico_models / "student", list[dict[str, Any]]()
    one = branch(Store(tmp_path / "one").open(), student, **SETTINGS[name])
    two = branch(Store(tmp_path / "two").open(), student, devices=2, events=events, **SETTINGS[name])
    assert one.identity == two.identity, "how many devices does not make another branch"
    rel = ROUNDING[name]
    for mine, theirs in zip(log_of(two), log_of(one), strict=True):
        assert mine == pytest.approx(theirs, rel=rel)
    for path in sorted(one.path.rglob("*.safetensors")):
        same_weights(two.path / path.relative_to(one.path), path, 100 * rel if "optimizer" in str(path) else 10 * rel)
    assert {path.name for path in two.path.iterdir()} == {path.name for path in one.path.iterdir()}
    rates = ("tokens_per_second",)
    assert {key: value for key, value in two.counts.items() if key not in rates} == pytest.approx(
        {key: value for key, value in one.counts.items() if key not in rates}, rel=rel
    )
    done = [event["done"] for event in events if event.get("unit") == "steps"]
    assert done == [1, 2, 3, 4, 5, 6], "the first process tells the worker how far it is"


class Stopped(Exception):
    pass


def test_two_processes_that_were_killed_go_on_to_the_same_bits(pico_models: Path, tmp_path: Path) -> None:
    often = RunSettings(threads=1, checkpoint_seconds=0.0)
    wanted: dict[str, Any] = {"devices": 2, "settings": often, "num_steps": 20, "extra": {"keeps_optimizer": True}}

    def train(store: Store, events: list[dict[str, Any]]) -> Published:
        return branch(store, pico_models / "student", events=events, **wanted)

    whole = train(Store(tmp_path / "whole").open(), [])

    class Stops(list[dict[str, Any]]):
        """Stops listening after the fourth step: the launcher then kills the processes, wherever they are."""

        def append(self, event: dict[str, Any]) -> None:
            super().append(event)
            if event.get("done") == 4:
                raise Stopped

    store = Store(tmp_path / "broken").open()
    with pytest.raises(Stopped):
        train(store, Stops())
    events: list[dict[str, Any]] = []
    resumed = train(store, events)
    assert 1 < min(event["done"] for event in events if "done" in event) < 20, "it did not begin again"
    assert log_of(resumed) == log_of(whole)
    for name in ("model.safetensors", STATE_FILE):
        assert sha256_of(resumed.path / name) == sha256_of(whole.path / name)


def test_what_a_process_raises_is_what_the_worker_raises(pico_models: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="over training.max_example_tokens = 10; raise it"):
        branch(Store(tmp_path).open(), pico_models / "student", devices=2, max_example_tokens=10)


def test_accelerate_launch_starts_the_same_processes(pico_models: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    one = branch(store, pico_models / "student", num_steps=3)
    step = branch_step_of(store, num_steps=3, devices=2)
    corpus = store.object_dir(step.parent("corpora").identity) / "ann.parquet"
    (tmp_path / "work").mkdir()
    job = BranchJob(
        dict(step.spec), step.locators["layout"], str(pico_models / "student"), None, [str(corpus)], [],
        str(tmp_path / "work"), 1e9, 2, [],
    )  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(asdict(job)))
    program = Path(sys.executable).with_name("accelerate")
    arguments = ["--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    places = ["--main_process_ip=127.0.0.1", "--main_process_port=0", "-m", "mot_core.sft.launch", "rank"]
    done = subprocess.run(
        [str(program), "launch", *arguments, *places, str(tmp_path / "job.json")], capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "work" / "training.jsonl").read_text().splitlines()]
    assert losses == pytest.approx([entry["loss"] for entry in log_of(one)], rel=1e-5)


def test_which_devices_a_branch_takes() -> None:
    job = BranchJob({"training": {}}, {"devices": 2}, "", None, [], [], "", 0.0, 8, ["6", "GPU-ab"])
    assert _environment(job, 2) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "6,GPU-ab"}
    with pytest.raises(TrainingError, match=r"training.devices is 3, but the job has 2 \(6, GPU-ab\)"):
        _environment(job, 3)
    on_cpu = BranchJob(**{**asdict(job), "devices": [], "threads": 1})
    assert _environment(on_cpu, 2) == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_death_after_all_have_finished_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    """Processes part in an order of the launcher's; one that dies then has nothing left to do."""
    counts = {"num_steps": 6}

    class Died:
        def __init__(self, command: list[str], **settings: Any) -> None:
            self.stdout = io.StringIO("")
            if whole:
                (tmp_path / ".counts.json").write_text(json.dumps(counts))

        def wait(self) -> int:
            return 1

        def kill(self) -> None:
            pass

    monkeypatch.setattr(launch.subprocess, "Popen", Died)
    settings = Training.model_validate({**TRAINING, "devices": 2})
    job = BranchJob(
        {"training": settings.record()}, settings.layout_record(), "s", None, [], [], str(tmp_path), 60.0, 2, []
    )
    if not whole:
        with pytest.raises(WorkerError, match="torchrun ended with 1"):
            launch.launch(job, lambda *told, **facts: None)
        return
    assert launch.launch(job, lambda *told, **facts: None) == counts
    assert "the branch is whole" in caplog.text
