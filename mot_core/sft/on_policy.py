"""The on-policy stage: a student learns from several teachers on what it writes itself, published like a branch.

Each optimizer step draws prompts, samples completions from the student as it is, and lowers the divergence of its
next-token distributions from the teachers' on those tokens (generalised knowledge distillation, Agarwal et al., arXiv
2306.13649; with several teachers: MOPD, 2606.30406; G-OPD, 2602.12125). No gradient goes through the sampling.
Invariant: what is sampled follows from the weights and (order seed, step, place in the batch) alone, so a step that is
killed goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mot_core.errors import TrainingError
from mot_core.files import read_jsonl, write_jsonl
from mot_core.identity import derive_seed
from mot_core.models import active_parameters, load_model, load_tokenizer, padding_id
from mot_core.prompts import render_prompt
from mot_core.runner import StepContext
from mot_core.sft.branch import TRAINING_LOG, BranchJob, Snapshots
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.divergence import LogMean, summed_divergence
from mot_core.sft.layout import IGNORED, MicroBatch, collate
from mot_core.sft.loss import kept_on_the_host
from mot_core.sft.ranks import Ranks
from mot_core.sft.sampling import sample_completions
from mot_core.sft.students import load_student, publish_student
from mot_core.sft.tokens import Example, batch_schedule
from mot_core.sft.train import Course, StepLog, Trainee, train
from mot_core.sft.vocabulary import check_same
from mot_core.spec import Training

PARTS = ("sampling", "teachers", "training")


@dataclass(frozen=True)
class Prompt(Example):
    """What the student goes on from at one place of one step's batch, with the seed of what it draws there."""

    seed: int = 0


@dataclass(frozen=True)
class Teachers:
    """The teachers' models, all on the student's device, in evaluation mode."""

    models: Sequence[Any]
    target: str
    """`mean`: one target, the equal-weight mixture of their distributions; `each`: as many as there are teachers."""
    num_tokens: int
    """Of the vocabulary, those that every model has a logit for; padding of one model's head is left out."""

    @torch.no_grad()
    def targets(self, batch: MicroBatch, carries_loss_BL: torch.Tensor) -> list[torch.Tensor]:
        """Log-probabilities at the positions that carry loss, (N, V) in fp32. Teachers pass one after another."""
        mixture, apart = LogMean(), list[torch.Tensor]()
        for model in self.models:
            log_NV = completion_logits(model, batch, carries_loss_BL, self.num_tokens).float().log_softmax(-1)
            if self.target == "mean":
                mixture.add(log_NV)
            else:
                apart.append(log_NV)
        return apart or [mixture.result()]


def completion_logits(model: Any, batch: MicroBatch, carries_loss_BL: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The logits (N, V) that predict the N tokens which carry loss."""
    logits_BLV = model(input_ids=batch.ids_BL, attention_mask=batch.mask_BL, use_cache=False).logits
    predicting_NV: torch.Tensor = logits_BLV[:, :-1][carries_loss_BL][:, :num_tokens]
    return predicting_NV


class OnPolicyTrainee(Trainee):
    """A student in training on its own completions; `record` is the step's `on_policy`."""

    def __init__(
        self, model: Any, settings: Training, pad_id: int, ranks: Ranks, *, end_id: int, teachers: Teachers,
        record: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(model, settings, pad_id, ranks)
        self.end_id, self.teachers, self.record = end_id, teachers, record
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def step(self, batch: list[Example], rate: float, name: str) -> StepLog:
        """Sample, then one optimizer step on what was sampled. Every sampled token weighs the same."""
        with self._timed("sampling"):
            examples = self.sample(batch)
        with self._timed("training"):
            told = super().step(examples, rate, name)
        ended = sum(example.input_ids[-1] == self.end_id for example in examples)
        return {**told, "mean_sampled_tokens": told["tokens"] / len(examples), "ended_share": ended / len(examples)}

    def sample(self, prompts: Sequence[Example]) -> list[Example]:
        """The prompts with what the student writes after each; prompts carry no loss, what ends a completion does."""
        self.model.eval()
        with self._cast():
            written = sample_completions(
                self.model, [prompt.input_ids for prompt in prompts], [_seed(prompt) for prompt in prompts],
                end_id=self.end_id, pad_id=self.pad_id, num_tokens=self.teachers.num_tokens,
                temperature=self.record["temperature"], max_completion_tokens=self.record["max_completion_tokens"],
            )  # fmt: skip
        self.model.train()
        return [
            Example(prompt.input_ids + ids, prompt.prompt_length, prompt.problem_id, prompt.name)
            for prompt, ids in zip(prompts, written, strict=True)
        ]

    def loss_of(self, examples: list[Example], *, counts: bool = True) -> torch.Tensor:
        """The summed divergence of one forward pass, over the completions' tokens."""
        assert counts, "a pass without loss belongs to a branch over several devices"
        batch = collate(examples, "padded", self.pad_id).to(self.ranks.device)
        carries_loss_BL = batch.labels_BL[:, 1:] != IGNORED
        with self._timed("teachers", within="training"):
            targets = self.teachers.targets(batch, carries_loss_BL)
        offload = self.settings.offload_activations and torch.is_grad_enabled()
        with self._cast(), kept_on_the_host(self.model) if offload else contextlib.nullcontext():
            logits_NV = completion_logits(self.model, batch, carries_loss_BL, self.teachers.num_tokens)
        return summed_divergence(logits_NV, targets, self.record["beta"])

    def _cast(self) -> Any:
        if self.settings.precision == "bfloat16":
            return torch.autocast(self.ranks.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _timed(self, part: str, within: str | None = None) -> Iterator[None]:
        started = time.monotonic()
        yield
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        self.seconds[part] += time.monotonic() - started
        if within is not None:
            self.seconds[within] -= time.monotonic() - started


def _seed(prompt: Example) -> int:
    assert isinstance(prompt, Prompt)
    return prompt.seed


def train_on_policy(context: StepContext) -> dict[str, Any]:
    """Runner of `on-policy`: the trained student, its training log, and snapshots at the steps asked for.

    Raises:
        ModelError: a teacher of another vocabulary.
        TrainingError: a prompt that leaves no room for the completion, a loss or gradient that is not finite.
    """
    spec, locators = context.spec, context.step.locators
    job = BranchJob(
        spec=dict(spec), layout=dict(locators["layout"]), locator=context.model_dir("student"),
        revision=locators.get("student_revision"), corpora=[], optimizers=[], work_dir=str(context.work_dir),
        checkpoint_seconds=context.settings.checkpoint_seconds, threads=context.settings.threads,
        devices=list(context.settings.devices),
    )  # fmt: skip
    settings, ranks = job.training, Ranks(device=torch.device(context.settings.device))
    tokenizer = load_tokenizer(job.locator, job.revision)
    student = load_student(
        job.locator, job.revision, str(ranks.device), settings, derive_seed("adapters", spec["order_seed"])
    )
    models = load_teachers(tokenizer, locators["teachers"], settings, str(ranks.device))
    num_tokens = min(int(model.config.vocab_size) for model in (student, *models))
    trainee = OnPolicyTrainee(
        student, settings, padding_id(tokenizer), ranks, end_id=int(tokenizer.eos_token_id), record=dict(spec["on_policy"]),
        teachers=Teachers(models, spec["on_policy"]["target"], num_tokens),
    )  # fmt: skip
    questions = read_jsonl(context.parent_dir("problems") / "problems.jsonl")
    prompts, batches = scheduled_prompts(tokenizer, questions, spec, settings.batch_size)
    check_room(prompts, spec["on_policy"]["max_completion_tokens"], student.config)
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    snapshots = Snapshots(job, trainee, tokenizer)
    started, trained = time.monotonic(), 0

    def after_step(done: int, entry: StepLog) -> None:
        nonlocal trained
        trained += int(entry["input_tokens"])
        rate = trained / max(1e-9, time.monotonic() - started)
        context.progress(done, len(batches), "steps", loss=entry["loss"], tokens_per_second=rate)
        snapshots.after_step(done)

    course = Course(spec["order_seed"], spec["first_step"], 0, spec["num_steps"])
    checkpoints = Checkpoints(context.work_dir, job.checkpoint_seconds, ranks, settings.layout_record())
    log = train(trainee, list[Example](prompts), batches, course, checkpoints, after_step)
    seconds = time.monotonic() - started
    snapshots.publish(len(log))
    with trainee.published_weights():
        publish_student(student, tokenizer, context.work_dir, settings, ranks, job.locator, job.revision)
    write_jsonl(context.work_dir / TRAINING_LOG, log)
    counts = {**_counts(trainee, log, len(questions)), "tokens_per_second": trained / max(1e-9, seconds)}
    if ranks.device.type == "cuda":
        counts["peak_memory_bytes"] = torch.cuda.max_memory_allocated(ranks.device)
    return counts


def load_teachers(tokenizer: Any, places: Sequence[Sequence[Any]], settings: Training, device: str) -> list[Any]:
    """The models at `(name, locator, revision)` of each teacher, frozen; in bf16 wherever the student computes in it.

    Raises:
        ModelError: a teacher of another vocabulary than the student's tokenizer has.
    """
    dtype = torch.float32 if settings.precision == "float32" else torch.bfloat16
    own, models = tokenizer.get_vocab(), []
    for name, locator, revision in places:
        check_same(own, load_tokenizer(locator, revision).get_vocab(), f"teacher {name}")
        model: Any = load_model(locator, revision, device, dtype, attention=settings.attention)
        models.append(model.requires_grad_(False))
    return models


def scheduled_prompts(
    tokenizer: Any, problems: Sequence[dict[str, Any]], spec: Any, batch_size: int
) -> tuple[list[Prompt], list[list[int]]]:
    """A prompt for each place of each step's batch, step by step, and the batches' places among them. The order is a
    branch's (`batch_schedule`); each place has a seed of its own, so a problem that comes again is answered anew."""
    ids: list[list[int]] = [
        tokenizer(render_prompt(tokenizer, problem["question"]), add_special_tokens=False)["input_ids"]
        for problem in problems
    ]
    order = batch_schedule([len(one) for one in ids], batch_size, spec["num_steps"], spec["order_seed"])
    prompts = [
        Prompt(
            ids[index], len(ids[index]), problems[index]["problem_id"], f"prompt of {problems[index]['problem_id']}",
            seed=derive_seed("on-policy", spec["order_seed"], step, place),
        )
        for step, batch in enumerate(order)
        for place, index in enumerate(batch)
    ]  # fmt: skip
    return prompts, [list(range(start, start + batch_size)) for start in range(0, len(prompts), batch_size)]


def check_room(prompts: Sequence[Prompt], max_completion_tokens: int, config: Any) -> None:
    """Raise `TrainingError` if a prompt and a completion of full length are more than the student's context holds."""
    longest = max(prompts, key=lambda prompt: prompt.prompt_length)
    context = int(config.max_position_embeddings)
    if longest.prompt_length + max_completion_tokens > context:
        raise TrainingError(
            f"{longest.name}: {longest.prompt_length} tokens, and on_policy.max_completion_tokens is "
            f"{max_completion_tokens}, more together than the student's context of {context}; lower the latter"
        )


def _counts(trainee: OnPolicyTrainee, log: list[StepLog], num_problems: int) -> dict[str, Any]:
    """FLOPs: 8 an active parameter and token of the student's (2 to sample, 6 to train; Kaplan et al. 2020, arXiv 2001.08361)
    and 2 of each teacher's. Seconds are this attempt's."""
    parameters = list(trainee.model.parameters())
    teachers, active = [active_parameters(model) for model in trainee.teachers.models], active_parameters(trainee.model)
    input_tokens = sum(int(entry["input_tokens"]) for entry in log)
    sampled = sum(int(entry["tokens"]) for entry in log)
    return {
        "num_problems": num_problems,
        "num_steps": len(log),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_active_parameters": active,
        "num_trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "num_teachers": len(teachers),
        "input_tokens": input_tokens,
        "completion_tokens": sampled,
        "sampled_tokens": sampled,
        "teacher_tokens": len(teachers) * input_tokens,
        "flops": (8 * active + 2 * sum(teachers)) * input_tokens,
        "first_loss": log[0]["loss"],
        "last_loss": log[-1]["loss"],
        **{f"{part}_seconds": seconds for part, seconds in trainee.seconds.items()},
    }
