"""The completer `vllm` around an engine that is a fake: the real worker script, pipes, watcher and clean-up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mot_core.completers import vllm_completer, vllm_process
from mot_core.completers.base import Completion, Request, completer_class
from mot_core.completers.vllm_completer import VllmCompleter
from mot_core.completers.vllm_launch import engine_arguments, engine_devices, stored_precision
from mot_core.errors import CompletionError, ModelError, WorkerError
from mot_core.models import load_tokenizer
from mot_core.processes import clean_environment
from mot_core.runner import ModelCache
from mot_core.spec import Engine
from tests.processes import ROOT, is_alive, wait_until
from tests.vllm.engines import ask, fake_python, notes, requests, source, workers_of


@pytest.fixture
def cache() -> Iterator[ModelCache]:
    models = ModelCache()
    yield models
    models.close()
    assert workers_of(os.getpid()) == []


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake engines note what they do; engines of this test are fakes."""
    monkeypatch.setenv("MOT_VLLM_PYTHON", str(fake_python(tmp_path)))
    monkeypatch.setenv("VLLM_FAKE_NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "notes"


def test_every_request_has_one_row_with_its_own_tokens(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache
) -> None:
    completer = VllmCompleter(source(pico_models / "student", cache, tmp_path))
    assert completer_class("vllm") is VllmCompleter
    assert not VllmCompleter.batched
    wanted = requests(70, samples=3)
    rows = ask(completer, wanted)
    tokenizer = load_tokenizer(str(pico_models / "student"))
    for request in wanted:
        row = rows[request.key]
        length = request.seed % 5 + 1
        assert row.text == str(tokenizer.decode([10 + request.seed % 50])) * length
        assert (row.num_tokens, row.finish_reason, row.reason) == (length + 1, "stop", "")
        assert row.prompt == f"<|user|>{request.question}<|end|><|assistant|>"
        assert row.prompt_tokens == len(request.question) + 3
        assert 0.0 < row.seconds < 60.0
    facts = completer.facts()
    expected = {"engine": "vllm", "version": "0.0.fake", "dtype": "float32", "max_model_len": 256, "threads": 1}
    assert {name: facts[name] for name in expected} == expected


def test_one_engine_serves_a_jobs_steps_and_leaves_nothing(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache
) -> None:
    logs = tmp_path / "logs"
    for temperature in (0.7, 0.0):
        ask(
            VllmCompleter(source(pico_models / "student", cache, logs, sampling={"temperature": temperature})),
            requests(3),
        )
    (engine,) = notes(written, "pid")
    assert is_alive(engine)
    assert [path.name for path in logs.iterdir()] == [f"vllm-{os.getpid()}-0.log"]
    cache.close()
    assert not is_alive(engine)
    assert list(logs.iterdir()) == []
    ask(VllmCompleter(source(pico_models / "ann", cache, logs)), requests(3))
    ask(VllmCompleter(source(pico_models / "bob", cache, logs)), requests(3))
    assert [is_alive(pid) for pid in notes(written, "pid")] == [False, False, True]


def test_an_engine_is_told_no_secret(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "OPENAI_API_KEY": "s", "HF_TOKEN": "s", "VLLM_API_KEY": "s", "AWS_SECRET_ACCESS_KEY": "s", "MOT_TEACHER_KEY": "s",
        "DATABASE_URL": "postgres://user:s@host", "PYTHONPATH": "/elsewhere", "VLLM_CPU_KVCACHE_SPACE": "",
    }  # fmt: skip
    for name, value in {**secrets, "HF_HOME": "/models", "LC_ALL": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    ask(VllmCompleter(source(pico_models / "student", cache, tmp_path, threads=2)), requests(1))
    (known,) = notes(written, "environment")
    assert known["HF_HOME"] == "/models"
    assert known["LC_ALL"] == "C.UTF-8"
    assert known["PATH"] == os.environ["PATH"]
    assert (known["OMP_NUM_THREADS"], known["VLLM_CPU_KVCACHE_SPACE"], known["VLLM_NO_USAGE_STATS"]) == ("2", "1", "1")
    assert not {name for name in secrets if known.get(name) == secrets[name]}
    assert "s" not in known.values()
    assert not [name for name in known if name.startswith("MOT_")]
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert clean_environment({"VLLM_CPU_KVCACHE_SPACE": "1"}, {"A": "b"})["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_a_prompt_without_room_is_a_failed_row_and_a_small_room_a_cut_one(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache
) -> None:
    completer = VllmCompleter(source(pico_models / "student", cache, tmp_path, engine={"max_model_len": 16}))
    long, tight, short = (
        Request.of({}, f"p{len(text)}", text, 0) for text in ("1+1+1+1+1+1+1+1", "1+1+1+1+1+11", "1+1")
    )
    rows = ask(completer, [long, tight, short])
    assert rows[long.key].finish_reason == "failed"
    assert rows[long.key].reason.startswith(
        "its prompt of 18 tokens leaves no room in the context of 16; raise engine."
    )
    assert (rows[tight.key].finish_reason, rows[tight.key].num_tokens) == ("length", 1)  # it would write more than fits
    assert rows[tight.key].prompt_tokens == 15
    assert rows[short.key].finish_reason == "stop"


def test_what_an_engine_refuses_is_a_failed_row(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FAKE_REFUSE", "1")
    tokenizer: Any = load_tokenizer(str(pico_models / "student"))
    odd = tokenizer.decode([99])
    refused, taken = Request.of({}, "p", f"1{odd}", 0), Request.of({}, "q", "1", 0)
    rows = ask(VllmCompleter(source(pico_models / "student", cache, tmp_path)), [refused, taken])
    assert rows[refused.key].reason == "vLLM refused it: token 99 is not welcome"
    assert rows[taken.key].finish_reason == "stop"


@pytest.mark.parametrize(
    ("by_error", "message"),
    [
        ("0", "vLLM ended by signal 9; what was answered is kept"),
        ("1", "vLLM failed: RuntimeError: the fake engine is tired; "),
    ],
)
def test_an_engine_that_dies_is_named_with_its_log_and_can_be_started_again(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch,
    by_error: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("VLLM_FAKE_DIE_AFTER", "40")
    monkeypatch.setenv("VLLM_FAKE_BY_ERROR", by_error)
    completer = VllmCompleter(source(pico_models / "student", cache, tmp_path))
    wanted, rows = requests(200), list[Completion]()
    with pytest.raises(WorkerError) as caught:
        completer.complete(wanted, rows.extend, lambda tokens: None)
    assert str(caught.value).startswith(message)
    log = tmp_path / f"vllm-{os.getpid()}-0.log"
    assert f"the log is {log}, its last lines:\n" in str(caught.value)
    assert str(caught.value).endswith(("the fake engine dies now", "RuntimeError: the fake engine is tired"))
    assert 0 < len(rows) < 200
    assert workers_of(os.getpid()) == []
    monkeypatch.delenv("VLLM_FAKE_DIE_AFTER")
    # The environment is read when a completer's engines are described, which a new job does.
    left = [request for request in wanted if request.key not in {row.key for row in rows}]
    cache.close()
    assert len(ask(VllmCompleter(source(pico_models / "student", cache, tmp_path)), left)) == len(left)


def test_a_model_or_an_interpreter_that_cannot_serve(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    completer = VllmCompleter(source(pico_models / "student", cache, tmp_path))
    monkeypatch.setenv("VLLM_FAKE_REFUSE_MODEL", "1")
    with pytest.raises(ModelError, match="vLLM cannot serve model .*/student: ValueError: no such architecture; "):
        ask(completer, requests(1))
    cache.close()
    monkeypatch.setenv("MOT_VLLM_PYTHON", sys.executable)
    with pytest.raises(WorkerError, match="cannot import vLLM: ModuleNotFoundError: .*; set MOT_VLLM_PYTHON to the"):
        ask(completer, requests(1))
    monkeypatch.setenv("MOT_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(WorkerError, match="MOT_VLLM_PYTHON is '/nowhere/python': no such program"):
        ask(completer, requests(1))


def test_settings_that_are_not_a_users_to_pass() -> None:
    with pytest.raises(ValueError, match="engine_args holds load_format, trust_remote_code: "):
        Engine(engine_args={"trust_remote_code": True, "load_format": "pt", "max_num_seqs": 8})


def test_an_error_of_whoever_accepts_passes_and_ends_the_engine(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_completer, "GROUP_ROWS", 10)
    completer = VllmCompleter(source(pico_models / "student", cache, tmp_path))
    groups = []

    def accept(rows: list[Completion]) -> None:
        groups.append(len(rows))
        if len(groups) == 2:
            raise CompletionError("too many failed")

    with pytest.raises(CompletionError, match="too many failed"):
        completer.complete(requests(200), accept, lambda tokens: None)
    assert len(groups) == 2
    assert workers_of(os.getpid()) == []
    assert len(ask(completer, requests(3))) == 3  # the same completer can be asked again
    assert len(notes(written, "pid")) == 2


def test_requests_are_handed_over_within_a_window_and_rows_in_groups(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_process, "IN_FLIGHT", 16)
    monkeypatch.setattr(vllm_completer, "GROUP_ROWS", 32)
    completer = VllmCompleter(source(pico_models / "student", cache, tmp_path))
    groups, tokens = [], []
    wanted = requests(300)
    completer.complete(wanted, groups.append, tokens.append)
    assert sum(map(len, groups)) == 300
    assert len(groups) <= 300 // 32 + 1
    assert sum(tokens) == sum(request.seed % 5 + 2 for request in wanted)
    assert max(notes(written, "most")) == 16


def test_engines_side_by_side_share_the_requests(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FAKE_STEP_MS", "2")
    monkeypatch.setenv("VLLM_FAKE_DIE_AFTER", "57")  # more than is left once the other has its eight
    monkeypatch.setattr(vllm_process, "IN_FLIGHT", 8)
    completer = VllmCompleter(
        source(pico_models / "student", cache, tmp_path, engine={"data_parallel_size": 2}, threads=2)
    )
    assert len(ask(completer, requests(64))) == 64
    pids = notes(written, "pid")
    assert len(set(pids)) == 2
    assert [known["OMP_NUM_THREADS"] for known in notes(written, "environment")] == ["1", "1"]
    assert set(notes(written, "most")) == {8}  # full from its first step on
    assert completer.facts()["data_parallel_size"] == 2
    cache.close()
    assert not any(map(is_alive, pids))


DRIVER = """
import sys
from pathlib import Path
from mot_core.completers.vllm_completer import VllmCompleter
from mot_core.runner import ModelCache
from tests.vllm.engines import requests, source
model, scratch = map(Path, sys.argv[1:])
completer = VllmCompleter(source(model, ModelCache(), scratch))
completer.complete(requests(10_000), lambda rows: print(len(rows), flush=True), lambda tokens: None)
"""


def test_nothing_of_an_engine_outlives_a_killed_core_process(
    written: Path, tmp_path: Path, pico_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FAKE_CHILD", "1")
    monkeypatch.setenv("VLLM_FAKE_STEP_MS", "20")
    command = [sys.executable, "-c", DRIVER, str(pico_models / "student"), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert int(driver.stdout.readline()) > 0
        (shared,) = map(Path, notes(written, "shared"))
        assert shared.exists()
        left = [*workers_of(driver.pid), *notes(written, "child")]
        assert len(left) == 3  # watcher, engine, and what the engine put into a session of its own
        assert all(map(is_alive, left))
        (engine,) = notes(written, "pid")
        (watcher,) = set(workers_of(driver.pid)) - {engine}
        os.kill(watcher, signal.SIGSTOP)  # the engine hears of the end first
        driver.kill()
        time.sleep(0.5)
        assert is_alive(engine)  # and waits: only the watcher gives back what it shares
        os.kill(watcher, signal.SIGCONT)
        wait_until(lambda: not any(map(is_alive, left)), 60.0, "every process of the engine has ended")
    assert not shared.exists()
    assert list(written.parent.glob("vllm-*/")) == []  # its temporary directory


@pytest.mark.parametrize("whose", ["watcher", "engine"])
def test_a_killed_watcher_or_engine_leaves_nothing_either(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, whose: str
) -> None:
    completer = VllmCompleter(source(pico_models / "student", cache, tmp_path))
    ask(completer, requests(3))
    (engine,) = notes(written, "pid")
    watcher = next(pid for pid in workers_of(os.getpid()) if pid != engine)
    os.kill(watcher if whose == "watcher" else engine, signal.SIGKILL)
    # A fake engine answers three requests sooner than the kernel may end it.
    wait_until(lambda: not is_alive(engine) and not is_alive(watcher), 60.0, "both have ended")
    with pytest.raises(WorkerError, match="vLLM ended by signal 9" if whose == "engine" else "vLLM ended"):
        ask(completer, requests(3))


def test_a_process_forked_meanwhile_keeps_no_engine_alive(
    written: Path, tmp_path: Path, pico_models: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_process, "CLOSE_SECONDS", 120.0)  # half of it is waited before the engine is killed
    ask(VllmCompleter(source(pico_models / "student", cache, tmp_path)), requests(3))
    heir = os.fork()  # it has every pipe of the engine's open
    if heir == 0:
        time.sleep(600.0)
        os._exit(0)
    try:
        started = time.monotonic()
        cache.close()
        assert time.monotonic() - started < 30.0
        assert not any(map(is_alive, notes(written, "pid")))
    finally:
        os.kill(heir, signal.SIGKILL)
        os.waitpid(heir, 0)


def test_engines_share_their_jobs_devices() -> None:
    assert engine_devices(Engine(), ("6",)) == [["6"]]
    assert engine_devices(Engine(), ()) == [[]]
    assert engine_devices(Engine(data_parallel_size=2), ()) == [[], []]
    assert engine_devices(Engine(tensor_parallel_size=2), ("5", "7")) == [["5", "7"]]
    assert engine_devices(Engine(), ("5", "7")) == [["5"]], "another step of its job needs two"
    pairs = engine_devices(Engine(tensor_parallel_size=2, data_parallel_size=2), ("4", "5", "6", "7"))
    assert pairs == [["4", "5"], ["6", "7"]]
    with pytest.raises(WorkerError, match=re.escape("need 8 devices, but the job has 2 (5, GPU-ab)")):
        engine_devices(Engine(tensor_parallel_size=4, pipeline_parallel_size=2), ("5", "GPU-ab"))


def test_arguments_and_precision(tmp_path: Path, cache: ModelCache) -> None:
    for stored, precision in (('"dtype": "float32"', "float32"), ('"torch_dtype": "bfloat16"', "auto")):
        (tmp_path / "config.json").write_text(f"{{{stored}}}")
        assert stored_precision(tmp_path) == precision
    engine = Engine(dtype="float16", engine_args={"enforce_eager": False, "max_num_seqs": 8})
    on_cpu = engine_arguments(source(tmp_path, cache, tmp_path), engine, tmp_path)
    fixed = {"trust_remote_code": False, "load_format": "safetensors", "skip_tokenizer_init": True, "dtype": "float16"}
    assert fixed.items() <= on_cpu.items()
    assert on_cpu["enforce_eager"] is False
    assert on_cpu["max_num_seqs"] == 8
    assert "gpu_memory_utilization" not in on_cpu
    on_gpu = engine_arguments(source(tmp_path, cache, tmp_path, devices=("0",)), engine, tmp_path)
    assert on_gpu["gpu_memory_utilization"] == 0.9
    assert "distributed_executor_backend" not in on_gpu
