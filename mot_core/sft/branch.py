"""The branch stage: θₜᵏ ← SFT(θₜ₋₁, D_k) (paper, method, step 1), published whole.

Also the baselines' training: STD is one branch on one corpus for the full length, MTD one on the union.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from mot_core.artifacts import write_jsonl
from mot_core.corpus.tables import read_corpus
from mot_core.models import load_model, load_tokenizer, save_student
from mot_core.runner import StepContext
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.places import snapshot_directory
from mot_core.sft.tokens import batch_schedule, tokenize
from mot_core.sft.train import StepLog, train

TRAINING_LOG = "training.jsonl"


def train_branch(context: StepContext) -> dict[str, Any]:
    """Runner of `branch`: the trained student in fp32, its training log, and snapshots at the steps asked for."""
    spec = context.spec
    settings = spec["training"]
    locator, revision = context.model_dir("student"), context.step.locators.get("student_revision")
    tokenizer = load_tokenizer(locator, revision)
    rows = [row for name in spec["corpora"] for row in read_corpus(context.parent_dir("corpora") / f"{name}.parquet")]
    examples = [tokenize(tokenizer, row, settings["max_example_tokens"]) for row in rows]
    batches = batch_schedule(
        [len(example.input_ids) for example in examples], settings["batch_size"], spec["num_steps"], spec["order_seed"]
    )
    model = load_model(locator, revision, context.settings.device)
    snapshots = {step for step in spec["snapshot_steps"] if step < spec["num_steps"]}
    # Scratch until the end: an attempt that goes on from a checkpoint needs the snapshots taken before it.
    scratch = context.work_dir / ".snapshots"
    started, trained = time.monotonic(), 0

    def after_step(done: int, entry: StepLog) -> None:
        nonlocal trained
        trained += int(entry["input_tokens"])
        rate = trained / max(1e-9, time.monotonic() - started)
        context.progress(done, len(batches), "steps", loss=entry["loss"], tokens_per_second=rate)
        if done in snapshots:
            save_student(model, tokenizer, scratch / ".unfinished")
            shutil.rmtree(scratch / f"step-{done}", ignore_errors=True)  # taken again after an older checkpoint
            (scratch / ".unfinished").rename(scratch / f"step-{done}")

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    log = train(
        model, examples, batches, pad_id, settings,
        Checkpoints(context.work_dir, context.settings.checkpoint_seconds),
        seed=spec["order_seed"], first_step=spec["first_step"], total_steps=spec["total_steps"], after_step=after_step,
    )  # fmt: skip
    for done in sorted(snapshots):
        (context.work_dir / snapshot_directory(done)).parent.mkdir(exist_ok=True)
        # Linked, not moved: an attempt killed between here and publication finds them in scratch again.
        shutil.copytree(scratch / f"step-{done}", context.work_dir / snapshot_directory(done), copy_function=os.link)
    save_student(model, tokenizer, context.work_dir)
    write_jsonl(context.work_dir / TRAINING_LOG, log)
    return {
        "num_examples": len(examples),
        "num_steps": len(batches),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input_tokens": sum(int(entry["input_tokens"]) for entry in log),
        "completion_tokens": sum(int(entry["tokens"]) for entry in log),
        "first_loss": log[0]["loss"],
        "last_loss": log[-1]["loss"],
        "tokens_per_second": trained / max(1e-9, time.monotonic() - started),
    }
