"""The branch stage: θₜᵏ ← SFT(θₜ₋₁, D_k) (paper, method, step 1), published whole.

Also the baselines' training: STD is one branch on one corpus for the full length, MTD one on the union. A branch runs in
the worker itself, or in as many processes as it has devices (`mot_core.sft.launch`), by the same function.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mot_core.corpus.tables import read_corpus
from mot_core.files import write_jsonl
from mot_core.identity import derive_seed
from mot_core.models import active_parameters, load_tokenizer, padding_id
from mot_core.runner import StepContext
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.launch import launch
from mot_core.sft.optimizers import start_from, write_state
from mot_core.sft.places import snapshot_directory
from mot_core.sft.ranks import Ranks
from mot_core.sft.students import load_student, publish_student
from mot_core.sft.tokens import Example, Tokenized, batch_schedule, hold_out, tokenize, within_limit
from mot_core.sft.train import Course, StepLog, Trainee, train
from mot_core.spec import Training

TRAINING_LOG = "training.jsonl"
Report = Callable[..., None]


@dataclass(frozen=True)
class BranchJob:
    """All that training one branch needs, as JSON: what crosses to the processes of a sharded branch."""

    spec: dict[str, Any]
    layout: dict[str, Any]
    locator: str
    revision: str | None
    corpora: list[str]
    optimizers: list[str]
    work_dir: str
    checkpoint_seconds: float
    threads: int
    devices: list[str]

    @property
    def training(self) -> Training:
        return Training.model_validate({**self.spec["training"], **self.layout})

    @property
    def course(self) -> Course:
        spec = self.spec
        if spec.get("schedule_over") == "round":
            return Course(spec["order_seed"], spec["first_step"], 0, spec["num_steps"])
        return Course(spec["order_seed"], spec["first_step"], spec["first_step"], spec["total_steps"])


def train_branch(context: StepContext) -> dict[str, Any]:
    """Runner of `branch`: the trained student, its training log, and snapshots at the steps asked for."""
    corpora = context.parent_dir("corpora")
    job = BranchJob(
        spec=dict(context.spec), layout=dict(context.step.locators.get("layout") or {}),
        locator=context.model_dir("student"), revision=context.step.locators.get("student_revision"),
        corpora=[str(corpora / f"{name}.parquet") for name in context.spec["corpora"]],
        optimizers=[str(path) for _, path in context.parents("optimizer/")], work_dir=str(context.work_dir),
        checkpoint_seconds=context.settings.checkpoint_seconds, threads=context.settings.threads,
        devices=list(context.settings.devices),
    )  # fmt: skip
    if job.training.devices > 1:
        return launch(job, context.progress)
    return fine_tune(job, Ranks(device=torch.device(context.settings.device)), context.progress)


def fine_tune(job: BranchJob, ranks: Ranks, report: Report) -> dict[str, Any]:
    """Train one branch and write what it publishes; every process of the branch calls this, the first one writes."""
    spec, settings, work_dir = job.spec, job.training, Path(job.work_dir)
    tokenizer = load_tokenizer(job.locator, job.revision)
    corpus = _read(tokenizer, job)
    examples, held_out = corpus.examples, list[Example]()
    if settings.early_stop is not None:
        examples, held_out = hold_out(corpus.examples, settings.early_stop.held_out_share)
    batches = batch_schedule(
        [len(example.input_ids) for example in examples], settings.batch_size, spec["num_steps"], spec["order_seed"]
    )
    trainee = _trainee(job, tokenizer, ranks)
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)  # to what the trainee holds: of earlier steps nothing counts
    snapshots = Snapshots(job, trainee, tokenizer)
    started, trained = time.monotonic(), 0

    def after_step(done: int, entry: StepLog) -> None:
        nonlocal trained
        trained += int(entry["input_tokens"])
        if ranks.first:
            rate = trained / max(1e-9, time.monotonic() - started)
            report(done, len(batches), "steps", loss=entry["loss"], tokens_per_second=rate)
        snapshots.after_step(done)

    checkpoints = Checkpoints(work_dir, job.checkpoint_seconds, ranks, settings.layout_record())
    log = train(trainee, examples, batches, job.course, checkpoints, after_step, held_out)
    seconds = time.monotonic() - started
    if spec.get("keeps_optimizer"):
        write_state(trainee.model, trainee.optimizer, work_dir, ranks)
    snapshots.publish(len(log))
    with trainee.published_weights():
        publish_student(trainee.model, tokenizer, work_dir, settings, ranks, job.locator, job.revision)
    if ranks.first:
        write_jsonl(work_dir / TRAINING_LOG, log)
    counts = {**_counts(trainee, corpus, len(held_out), log), "tokens_per_second": trained / max(1e-9, seconds)}
    if ranks.device.type == "cuda":  # the first process's; shards are of one size
        counts["peak_memory_bytes"] = torch.cuda.max_memory_allocated(ranks.device)
    return counts


def _read(tokenizer: Any, job: BranchJob) -> Tokenized:
    rows = [row for path in job.corpora for row in read_corpus(Path(path))]
    settings = job.training
    return within_limit([tokenize(tokenizer, row) for row in rows], settings.max_example_tokens, settings.too_long)


def _trainee(job: BranchJob, tokenizer: Any, ranks: Ranks) -> Trainee:
    """The model, ready to train; moments of the round before are in its optimizer."""
    seed = derive_seed("adapters", job.spec["order_seed"])
    for turn in range(ranks.count):
        # In turn, so that a host holds one whole copy at a time beside the shards.
        if turn == ranks.index:
            device = str(ranks.device) if ranks.count == 1 else "cpu"
            model = load_student(job.locator, job.revision, device, job.training, seed)
            trainee = Trainee(model, job.training, padding_id(tokenizer), ranks)
        ranks.wait()
    if job.optimizers:
        start_from(
            trainee.model, trainee.optimizer, [Path(path) for path in job.optimizers], job.spec["optimizer_weights"]
        )
    return trainee


def _counts(trainee: Trainee, corpus: Tokenized, num_held_out: int, log: list[StepLog]) -> dict[str, Any]:
    parameters = list(trainee.model.parameters())
    counts: dict[str, Any] = {
        "num_examples": len(corpus.examples) - num_held_out,
        "num_dropped_long": corpus.num_dropped,
        "num_cut_long": corpus.num_cut,
        "num_steps": len(log),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_active_parameters": active_parameters(trainee.model),
        "num_trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "input_tokens": sum(int(entry["input_tokens"]) for entry in log),
        "completion_tokens": sum(int(entry["tokens"]) for entry in log),
        "first_loss": log[0]["loss"],
        "last_loss": log[-1]["loss"],
    }
    looks = [entry for entry in log if "held_out_loss" in entry]
    if looks:
        best = min(looks, key=lambda entry: entry["held_out_loss"])
        first_step = log[0]["step"] - 1
        counts |= {
            "num_held_out": num_held_out, "held_out_loss": best["held_out_loss"], "best_step": best["step"] - first_step
        }  # fmt: skip
    return counts


class Snapshots:
    """Students as they were inside a branch. In scratch until the end: an attempt that goes on from a checkpoint
    needs those taken before it."""

    def __init__(self, job: BranchJob, trainee: Trainee, tokenizer: Any) -> None:
        self.job, self.trainee, self.tokenizer = job, trainee, tokenizer
        self.wanted = {step for step in job.spec["snapshot_steps"] if step < job.spec["num_steps"]}
        self.scratch = Path(job.work_dir) / ".snapshots"

    def after_step(self, done: int) -> None:
        if done in self.wanted:
            self._take(done)

    def _take(self, done: int) -> None:
        job, trainee = self.job, self.trainee
        unfinished = self.scratch / ".unfinished"
        with trainee.published_weights():
            publish_student(
                trainee.model, self.tokenizer, unfinished, job.training, trainee.ranks, job.locator, job.revision
            )
        if trainee.ranks.first:
            shutil.rmtree(self.scratch / f"step-{done}", ignore_errors=True)  # taken again after an older checkpoint
            unfinished.rename(self.scratch / f"step-{done}")

    def publish(self, num_steps: int) -> None:
        """Put every snapshot in its place. One that an early stop left untaken is the student that it kept."""
        for done in sorted(self.wanted):
            if done > num_steps:
                self._take(done)
            if self.trainee.ranks.first:
                target = Path(self.job.work_dir) / snapshot_directory(done)
                target.parent.mkdir(exist_ok=True)
                # Linked, not moved: an attempt killed between here and publication finds them in scratch again.
                shutil.copytree(self.scratch / f"step-{done}", target, copy_function=os.link)
