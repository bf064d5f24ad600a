"""The full-size presets, run to their reports on pico models of the same architectures, through the same code.

What is replaced is listed in docs/presets.md and stands in `CHANGES` and `PAPER`, `SINGLE_GPU`: sizes, token limits, the
number of repetitions, and what this machine lacks (vLLM, flash attention, several GPUs, bitsandbytes where it is not
installed). Everything else, ids, revisions, formats, filters, splits, layout, precision and losses, is the preset's.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mot_core.artifacts import Store
from mot_core.runner import RunSettings
from mot_core.sft.memory import Pass, memory_of
from mot_core.spec import Experiment, Training
from mot_core.spec_files import load_spec, load_specs
from mot_core.tables import load_results
from tests.contexts import run
from tests.drive_memory import branch_of
from tests.endpoint import Call, Endpoint, Reply, reply
from tests.pico_hub import (
    ARCHITECTURES,
    QWEN3_VOCABULARY,
    PicoHub,
    fill_benchmarks,
    fill_paper,
    fill_single_gpu,
    in_environment,
    rationale_of,
    write_pico_of,
)

ROOT = Path(__file__).resolve().parent.parent
R1 = "deepseek-ai/DeepSeek-R1"
KEY = "a-key-of-nobody-4711"
ALL_METHODS = {"base", "mtd", "merge_once", "mot", "ensemble", "shuffled"}
# Sizes and repetitions.
CHANGES = [
    "corpus.num_rationales=4", "generation.sampling.max_completion_tokens=8", "rounds=2", "steps_per_round=2",
    "training.batch_size=2", "training_seeds=[1]", "evaluation.path.num_problems=4", "evaluation.path.k=1",
    "evaluation.ci_resamples=100", "evaluation.completer=transformers", "evaluation.engine=null",
]  # fmt: skip
SCRIPTED = "tests.pico_hub:Answering"
# s1K has no number of problems in the preset and takes all that its filter leaves: here both corpora take as many.
PAPER = [
    "problems.num_problems=16", "training.attention=sdpa", "training.devices=1",
    *(f"teachers.{name}.{change}" for name in ("qwq-32b", "qwen3-32b", "qwen3-235b-a22b")
      for change in (f"completer={SCRIPTED}", "engine=null")),
]  # fmt: skip


def smaller(preset: str) -> list[str]:
    """The overrides under which a preset is small: each benchmark asked once, for eight tokens."""
    names = [benchmark.name for benchmark in load_specs(preset)[0].evaluation.benchmarks]
    asked = [f"evaluation.benchmarks.{name}.{field}" for name in names
             for field in ("k=1", "sampling.max_completion_tokens=8")]  # fmt: skip
    return [*CHANGES, *asked]


def mot(hub: PicoHub, *arguments: str, overrides: list[str], cwd: Path) -> str:
    """What a `mot` command prints."""
    sets = [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments, *sets], cwd=cwd, capture_output=True, text=True, timeout=900,
        env=in_environment(hub, MOT_R1_KEY=KEY, COLUMNS="200"), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-3000:]
    return done.stdout


def hosted_r1(call: Call) -> Reply:
    """DeepSeek-R1 at a host: reasoning apart from content."""
    reasoning, answer = rationale_of(call.question, "DeepSeek-R1")
    return reply(answer, reasoning_content=reasoning)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> PicoHub:
    """A cache with everything that both presets name."""
    made = PicoHub(tmp_path_factory.mktemp("hub"))
    for hub_id in ARCHITECTURES:
        write_pico_of(made.model(hub_id), hub_id)
    fill_benchmarks(made)
    fill_paper(made)
    source = load_specs("single-gpu-24gb")[0].problems
    assert source.revision is not None
    fill_single_gpu(made, source.revision)
    return made


def dtypes_of(directory: Path) -> set[str]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118


def check_run(run_dir: Path, spec: Experiment) -> dict[str, Any]:
    """What every run of a preset must show; its summary."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    assert (run_dir / "report.html").stat().st_size > 50_000
    teachers = [teacher.name for teacher in spec.teachers]
    expected = ALL_METHODS | {f"std/{name}" for name in teachers}
    assert set(summary["budgets"]) == set(spec.budgets)
    assert set(summary["budgets"]["matched_path"]) == expected
    on_test = {benchmark.name for benchmark in spec.evaluation.benchmarks}
    for method, entry in summary["budgets"]["matched_path"].items():
        assert set(entry["benchmarks"]) == on_test, method
        for of_round in entry["rounds"]:
            assert set(of_round["benchmarks"]) == {"aime24"}, "a benchmark without a dev split is asked on test only"
    numbers = summary["budgets"]["matched_path"]["mot"]["benchmarks"]
    assert (numbers["aime24"]["num_problems"], numbers["aime25"]["num_problems"]) == (30, 30)
    assert summary["best_single_teacher"]["dev"].startswith("std/")
    results = load_results(run_dir)
    chosen = results.rationales.query("selected")
    assert chosen.groupby("teacher").size().to_dict() == dict.fromkeys(teachers, 4)
    problems = chosen.groupby("teacher")["problem_id"].agg(lambda ids: tuple(sorted(ids)))
    assert problems.nunique() == 1, "matched: every teacher's corpus is on the same problems"
    branch_steps = summary["budgets"]["matched_path"]["mot"]["cost"]["branch_steps"]
    assert branch_steps == len(teachers) * 2 * 2
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "first_question", "changes"),
    [
        ("boba", "Add them up: 10 + 17.", []),
        # The first row that its filter keeps.
        ("s1k", "How much is 41 + 48?", ["budgets=[matched_path]", "evaluation.path.rounds=last"]),
    ],
    ids=["boba", "s1k"],
)
@pytest.mark.usefixtures("prefect_api")
def test_the_papers_preset_runs_to_its_report(
    hub: PicoHub, tmp_path: Path, variant: str, first_question: str, changes: list[str]
) -> None:
    preset = f"paper-qwen3-14b:{variant}"
    with Endpoint(hosted_r1, models=(R1,)) as endpoint:
        overrides = [*smaller(preset), *PAPER, *changes, f"teachers.deepseek-r1.endpoint.base_url={endpoint.url}"]
        shown = mot(hub, "preview", preset, overrides=overrides, cwd=tmp_path)
        assert shown.count(first_question) == 5, "the problem and four prompts"
        assert endpoint.answered == 0, "a preview asks nobody"
        mot(hub, "run", preset, "--workers", "2", overrides=overrides, cwd=tmp_path)
        asked = [[message["role"] for message in body["messages"]] for body in endpoint.seen]
        assert asked == [["system", "user"]] * 16 and {body["model"] for body in endpoint.seen} == {R1}
    spec = load_spec(preset, overrides)
    (run_dir,) = (tmp_path / "store" / "runs").glob(f"paper-qwen3-14b-{variant}*")
    summary = check_run(run_dir, spec)
    if "matched_compute" in spec.budgets:
        assert summary["budgets"]["matched_compute"]["mtd"]["cost"]["branch_steps"] == 4 * 2 * 2
    student = Path(summary["students"]["mot"]["1"]["path"])
    assert json.loads((student / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert dtypes_of(student) == {"F32"}, "bfloat16 computes in bf16 and keeps weights in fp32"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_the_single_gpu_preset_runs_to_its_reports(hub: PicoHub, tmp_path: Path) -> None:
    """Both variants by one command, one after the other."""
    fewer = ["problems.num_problems=20", "evaluation.path.methods=[mot]"]
    overrides = [*smaller("single-gpu-24gb"), *fewer, *bitsandbytes_or_not()]
    mot(hub, "run", "single-gpu-24gb", "--workers", "2", overrides=overrides, cwd=tmp_path)
    full, lora = load_specs("single-gpu-24gb", overrides)
    for spec, dtype in ((full, "BF16"), (lora, "F32")):
        (run_dir,) = (tmp_path / "store" / "runs").glob(f"{spec.name}*")
        summary = check_run(run_dir, spec)
        student = Path(summary["students"]["mot"]["1"]["path"])
        assert dtypes_of(student) == {dtype}
        assert "model.layers.0.self_attn.q_proj.weight" in safe_open(student / "model.safetensors", "pt").keys()  # noqa: SIM118
        teachers = load_results(run_dir).teachers.set_index("teacher")
        assert teachers["num_absent"].tolist() == [0, 0] and (teachers["num_requests"] == 20).all()
    counts = [made.counts for made in Store(tmp_path / "store").manifests() if made.kind == "branch"]
    adapted = [one for one in counts if one["num_trained_parameters"] < one["num_parameters"]]
    assert len(counts) == 22 and len(adapted) == 11, "all parameters of the one student, adapters of the other"


def bitsandbytes_or_not() -> list[str]:
    """8-bit moments where bitsandbytes is installed, which has CPU code; else plain ones."""
    return [] if importlib.util.find_spec("bitsandbytes") else ["training.optimizer=adamw"]


# -- memory ----------------------------------------------------------------------------------------------

# A published model's config.json, so far as memory_of reads it.
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-14B": {"hidden_size": 5120, "num_hidden_layers": 40, "intermediate_size": 17_408, "num_attention_heads": 40,
                       "tie_word_embeddings": False},
    "Qwen/Qwen3-1.7B": {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16,
                        "tie_word_embeddings": True},
    "Qwen/Qwen3-4B": {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32,
                      "tie_word_embeddings": True},
}  # fmt: skip
COMMON = {"model_type": "qwen3", "vocab_size": QWEN3_VOCABULARY, "num_key_value_heads": 8, "head_dim": 128}
ALL = [spec for preset in ("paper-qwen3-14b", "single-gpu-24gb") for spec in load_specs(preset)]


def full_size_bytes(spec: Experiment, **changes: Any) -> int:
    """On each device, for the largest pass that the preset allows, all of whose tokens carry loss."""
    training = spec.training.model_copy(update=changes)
    assert training.layout == "packed" and training.micro_batch_tokens is not None
    largest = Pass(1, training.micro_batch_tokens, training.micro_batch_tokens)
    return sum(memory_of({**COMMON, **CONFIGS[spec.student.model]}, training, largest).values())


def test_what_the_presets_say_of_their_memory() -> None:
    boba, _, full, lora = ALL
    assert full_size_bytes(boba) == pytest.approx(54e9, rel=0.02)
    assert full_size_bytes(full) == pytest.approx(14e9, rel=0.02)
    assert full_size_bytes(full, precision="bfloat16") == pytest.approx(26e9, rel=0.03)
    assert full_size_bytes(lora) == pytest.approx(13e9, rel=0.03)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_what_a_preset_asks_for_fits_its_own_limits(spec: Experiment) -> None:
    """Prompt and rationale in an example, an example in a pass, prompt and completion in an engine's context."""
    training, corpus = spec.training, spec.corpus
    assert corpus.max_rationale_tokens is not None and training.micro_batch_tokens is not None
    assert corpus.max_rationale_tokens + 1024 <= training.max_example_tokens <= training.micro_batch_tokens
    for teacher in spec.teachers:
        assert teacher.license is not None
        if teacher.engine is not None:
            limit = spec.generation.sampling_of(teacher).max_completion_tokens
            assert teacher.engine.max_model_len is not None and limit + 1024 <= teacher.engine.max_model_len
            assert teacher.engine.num_devices == 8
    engine = spec.evaluation.engine
    assert engine is not None and engine.max_model_len is not None
    for benchmark in spec.evaluation.benchmarks:
        assert benchmark.sampling.max_completion_tokens + 1024 <= engine.max_model_len


@dataclass(frozen=True)
class Measured:
    """What one preset's training took on a pico model with Qwen3's whole vocabulary; sizes in bytes."""

    training: Training
    student: Path
    root: Path
    branch: int
    merge: int
    branches: list[Path]
    merged: Path
    tokens: int


MEMORY = {
    "paper-qwen3-14b:boba": ["training.attention=sdpa", "training.devices=1"],
    "single-gpu-24gb:qwen3-1.7b-full": [],
    "single-gpu-24gb:qwen3-4b-lora": [],
}


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """Two branches and a merge of a preset's training settings, in a process of their own, once each."""

    @functools.cache
    def made(preset: str) -> Measured:
        root = tmp_path_factory.mktemp("memory")
        overrides = [*MEMORY[preset], *(bitsandbytes_or_not() if "full" in preset else []), "training.batch_size=2"]
        spec = load_spec(preset, overrides)
        student = write_pico_of(root / "large", spec.student.model, vocabulary=QWEN3_VOCABULARY, hidden=64)
        small = write_pico_of(root / "small", spec.student.model)
        command = [sys.executable, "-m", "tests.drive_memory", preset, str(student), str(small), str(root), *overrides]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=900, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        branches = [Path(path) for path in found["branches"]]
        return Measured(
            spec.training,
            student,
            root,
            found["branch"],
            found["merge"],
            branches,
            Path(found["merged"]),
            found["tokens"],
        )

    return made


@pytest.mark.slow
@pytest.mark.parametrize("preset", MEMORY)
def test_a_branch_and_a_merge_with_the_whole_vocabulary_stay_in_their_bounds(
    measure: Callable[[str], Measured], preset: str
) -> None:
    found = measure(preset)
    config = json.loads((found.student / "config.json").read_text())
    assert config["vocab_size"] == QWEN3_VOCABULARY and found.tokens >= 800
    row = Pass(1, found.tokens + 2 * 100, found.tokens + 2 * 40)
    counted = sum(memory_of(config, found.training, row).values())
    full = sum(memory_of(config, found.training.model_copy(update={"loss": "full"}), row).values())
    # A tenth for the allocator's rounding, and the file that is written at the end.
    written = (found.branches[0] / "model.safetensors").stat().st_size
    assert counted / 2 < found.branch < 1.1 * counted + written < full / 2
    # docs/merging.md; inputs and output are mapped besides.
    largest = 4 * QWEN3_VOCABULARY * config["hidden_size"]
    mapped = sum((path / "model.safetensors").stat().st_size for path in [*found.branches, found.merged, found.student])
    assert found.merge < (2 + 2) * largest + mapped
    one, two, mean = (load_file(path / "model.safetensors") for path in [*found.branches, found.merged])
    key = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(one[key], two[key])
    expected = (one[key].float() + two[key].float()) / 2
    assert torch.allclose(mean[key].float(), expected.to(mean[key].dtype).float())


@pytest.mark.slow
def test_the_papers_branch_over_two_processes_is_the_same(measure: Callable[[str], Measured], tmp_path: Path) -> None:
    """FSDP over gloo with the preset's precision, packing, checkpointing and loss, and the whole vocabulary."""
    one = measure("paper-qwen3-14b:boba")
    store = Store(tmp_path).open()
    training = one.training.model_copy(update={"devices": 2})
    step = branch_of(store, training, 1)
    locators = {"layout": training.layout_record(), "student": str(one.student), "student_revision": None}
    two = run(store, "branch", step.spec, step.parents, locators, RunSettings(threads=2, checkpoint_seconds=1e9))
    (same,) = [path for path in one.branches if path.name == two.path.name]
    logs = [
        [json.loads(line) for line in (path / "training.jsonl").read_text().splitlines()] for path in (same, two.path)
    ]
    for mine, theirs in zip(*logs, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-2) and mine["tokens"] == theirs["tokens"]
    ours, theirs = (load_file(path / "model.safetensors") for path in (two.path, same))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype == torch.float32
        assert float((value - theirs[key]).norm()) <= 1e-2 * float(theirs[key].norm()), key
