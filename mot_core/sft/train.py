"""The training loop: AdamW on the completion's mean token loss. Short on purpose; torch and accelerate only.

Oracle: TRL's SFTTrainer on the same data in the same order gives the same losses (tests/sft/test_trl_oracle.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from mot_core.errors import TrainingError
from mot_core.identity import derive_seed
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.layout import collate, passes_of
from mot_core.sft.loss import CompletionLoss
from mot_core.sft.optimizers import learning_rate_at, optimizer_for
from mot_core.sft.ranks import Ranks, put_away, shard, whole
from mot_core.sft.tokens import Example
from mot_core.spec import Training

StepLog = dict[str, float]
AVERAGE = "average"
"""The name of the averaged weights in the optimizer's state."""


@dataclass(frozen=True)
class Course:
    """Where a branch stands on its path: the seed of its draws, its first step's number, and its place in the schedule."""

    seed: int
    first_step: int
    first_scheduled: int
    total_scheduled: int


@dataclass
class Trainee:
    """A model in training: with its loss, its optimizer, and its process's place."""

    model: Any
    settings: Training
    pad_id: int
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        settings, ranks = self.settings, self.ranks
        self.accelerator = Accelerator(cpu=ranks.device.type == "cpu")
        self.model.train()
        self.computed = CompletionLoss(
            self.model, settings.loss, settings.loss_chunk_tokens, offload=settings.offload_activations
        )
        if ranks.count > 1:
            shard(self.computed, getattr(self.model, "_no_split_modules", None) or (), settings.precision, ranks)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer_for(self.parameters, settings)

    def loss_of(self, examples: list[Example], *, counts: bool = True) -> torch.Tensor:
        """The summed loss of one forward pass."""
        settings, device = self.settings, self.ranks.device
        batch = collate(examples, settings.layout, self.pad_id, counts=counts).to(device)
        # Sharded weights are cast as they are gathered.
        cast = settings.precision == "bfloat16" and self.ranks.count == 1
        with torch.autocast(device.type, torch.bfloat16) if cast else contextlib.nullcontext():
            loss: torch.Tensor = self.computed(batch)
        return loss

    def passes(self, batch: list[Example]) -> list[tuple[list[Example], bool]]:
        settings, ranks = self.settings, self.ranks
        return passes_of(batch, settings.layout, settings.micro_batch_tokens, ranks.index, ranks.count)

    def step(self, batch: list[Example], rate: float, name: str) -> StepLog:
        """One optimizer step. Every token of the batch weighs the same, however the batch is split."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        num_tokens = sum(example.num_targets for example in batch)
        if num_tokens <= 0:
            raise TrainingError(f"{name}: no token of the batch carries loss, its loss mask is all zero")
        loss_sum = 0.0
        for examples, counts in self.passes(batch):
            loss = self.loss_of(examples, counts=counts) / num_tokens
            # Sharding takes the mean over processes, but each one's loss is a part of the batch's.
            self.accelerator.backward(loss * self.ranks.count)
            loss_sum += float(loss.detach())
        norm = float(whole(self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)))
        (loss_value,) = self.ranks.sum([loss_sum])
        if not math.isfinite(loss_value) or not math.isfinite(norm):
            raise TrainingError(
                f"{name}: loss is {loss_value}, gradient norm {norm}; expected finite numbers; "
                "lower the learning rate or add warm-up"
            )
        with self._averaging():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": loss_value, "grad_norm": norm, "learning_rate": rate, "tokens": num_tokens,
            "input_tokens": sum(len(example.input_ids) for example in batch),
        }  # fmt: skip

    @contextlib.contextmanager
    def _averaging(self) -> Iterator[None]:
        """Around an optimizer step: move the average of the weights towards where the step took them, where one is kept.
        It lies with the optimizer's state, so that checkpoints hold it: θ̄ ← d θ̄ + (1 − d) θ, from the start on."""
        decay = self.settings.ema_decay
        if decay is None:
            yield
            return
        state = self.optimizer.state
        averages = [state[p][AVERAGE] if AVERAGE in state[p] else p.detach().clone() for p in self.parameters]
        for parameter in self.parameters:
            state[parameter].pop(AVERAGE, None)  # AdamW takes a parameter without any state for a fresh one
        yield
        for parameter, average in zip(self.parameters, averages, strict=True):
            state[parameter][AVERAGE] = average.lerp_(parameter.detach(), 1.0 - decay)

    @contextlib.contextmanager
    def published_weights(self) -> Iterator[None]:
        """Inside, the model has the weights that are published: the average where one is kept, else its own."""
        if self.settings.ema_decay is None:
            yield
            return
        averages = [self.optimizer.state[parameter][AVERAGE] for parameter in self.parameters]
        self._exchange(averages)
        try:
            yield
        finally:
            self._exchange(averages)

    def _exchange(self, averages: list[Any]) -> None:
        with torch.no_grad():
            for parameter, average in zip(self.parameters, averages, strict=True):
                own = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(own)

    def held_out_loss(self, examples: list[Example]) -> float:
        """The mean loss over the tokens of examples that are not trained on."""
        size, total = self.settings.batch_size, 0.0
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(examples), size):
                for part, counts in self.passes(examples[start : start + size]):
                    total += float(self.loss_of(part, counts=counts))
        put_away(self.computed)
        self.model.train()
        return self.ranks.sum([total])[0] / sum(example.num_targets for example in examples)


def train(
    trainee: Trainee, examples: list[Example], batches: list[list[int]], course: Course, checkpoints: Checkpoints,
    after_step: Callable[[int, StepLog], None], held_out: Sequence[Example] = (),
) -> list[StepLog]:  # fmt: skip
    """Train in place, one optimizer step a batch; `after_step(steps done, log)` follows each.

    Raises:
        TrainingError: a loss (held out, too) or gradient that is not finite, with the step; the weights are not published.
    """
    settings, ranks, stop = trainee.settings, trainee.ranks, trainee.settings.early_stop
    done, log = checkpoints.load(trainee.model, trainee.optimizer)
    seen = [entry["held_out_loss"] for entry in log if "held_out_loss" in entry]
    for step in range(done, len(batches)):
        if stop is not None and _looks_in_vain(seen) >= stop.patience:
            break
        rate = learning_rate_at(
            course.first_scheduled + step, course.total_scheduled, settings.learning_rate, settings.warmup_steps,
            settings.schedule,
        )  # fmt: skip
        # Dropout repeats, and resumes, by step; no two processes draw the same.
        torch.manual_seed(derive_seed("step", course.seed, step, *([ranks.index] if ranks.index else [])))
        number = course.first_step + step + 1
        entry = {"step": number, **trainee.step([examples[index] for index in batches[step]], rate, f"step {number}")}
        if stop is not None and ((step + 1) % stop.every_steps == 0 or step + 1 == len(batches)):
            entry["held_out_loss"] = _look(trainee, list(held_out), seen, checkpoints, f"step {number}")
        log.append(entry)
        after_step(step + 1, entry)
        # The first process's clock decides for all.
        due = ranks.sum([float(ranks.first and checkpoints.due())])[0] > 0.0
        if due and step + 1 < len(batches):
            checkpoints.save(step + 1, trainee.model, trainee.optimizer, log)
    if stop is not None:
        checkpoints.restore_best(trainee.model)
    trainee.model.eval()
    return log


def _looks_in_vain(seen: Sequence[float]) -> int:
    """Looks at the held-out examples since the lowest loss."""
    return len(seen) - 1 - seen.index(min(seen)) if seen else 0


def _look(trainee: Trainee, held_out: list[Example], seen: list[float], checkpoints: Checkpoints, name: str) -> float:
    loss = trainee.held_out_loss(held_out)
    if not math.isfinite(loss):
        raise TrainingError(f"{name}: the held-out loss is {loss}; expected a finite number; lower the learning rate")
    if loss < min(seen, default=math.inf):
        checkpoints.keep_best(trainee.model)
    seen.append(loss)
    return loss
