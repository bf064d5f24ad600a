"""The training loop: AdamW on the completion's mean token loss. Short on purpose; torch and accelerate only.

Oracle: TRL's SFTTrainer on the same data in the same order gives the same losses (tests/sft/test_trl_oracle.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional

from mot_core.errors import TrainingError
from mot_core.identity import derive_seed
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.tokens import IGNORED, Example, collate

StepLog = dict[str, float]


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """The rate of a step (counted from 0) of a path of `total_steps`: linear warm-up, then the schedule."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[schedule]


def completion_loss(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Mean cross-entropy in nats over labelled tokens, and their number. Position i predicts label i + 1."""
    targets = labels_BL[:, 1:].reshape(-1)
    num_tokens = int((targets != IGNORED).sum())
    if num_tokens == 0:
        raise TrainingError("a batch has no token that carries loss: its loss mask is all zero")
    total = functional.cross_entropy(
        logits_BLV[:, :-1].reshape(-1, logits_BLV.shape[-1]).float(), targets, ignore_index=IGNORED, reduction="sum"
    )
    return total / num_tokens, num_tokens


def train(
    model: Any, examples: list[Example], batches: list[list[int]], pad_id: int, settings: Any,
    checkpoints: Checkpoints, *, seed: int, first_step: int, total_steps: int,
    after_step: Callable[[int, StepLog], None],
) -> list[StepLog]:  # fmt: skip
    """Train in place, one optimizer step a batch; `after_step(steps done, log)` follows each.

    Raises:
        TrainingError: a loss or gradient that is not finite, with the step; the weights are not published.
    """
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], betas=(settings["beta1"], settings["beta2"]),
        weight_decay=settings["weight_decay"], fused=True,
    )  # fmt: skip
    done, log = checkpoints.load(model, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(done, len(batches)):
        rate = learning_rate_at(
            first_step + step, total_steps, settings["learning_rate"], settings["warmup_steps"], settings["schedule"]
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids_BL, mask_BL, labels_BL = (
            part.to(model.device) for part in collate([examples[index] for index in batches[step]], pad_id)
        )
        torch.manual_seed(derive_seed("step", seed, step))  # dropout repeats, and resumes, by step
        logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
        loss, num_tokens = completion_loss(logits_BLV, labels_BL)
        accelerator.backward(loss)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), settings["max_grad_norm"]))
        loss_value = float(loss.detach())
        if not math.isfinite(loss_value) or not math.isfinite(norm):
            raise TrainingError(
                f"step {first_step + step + 1}: loss is {loss_value}, gradient norm {norm}; expected finite numbers; "
                "lower the learning rate or add warm-up"
            )
        optimizer.step()
        optimizer.zero_grad()
        entry: StepLog = {
            "step": first_step + step + 1, "loss": loss_value, "grad_norm": norm, "learning_rate": rate,
            "tokens": num_tokens, "input_tokens": int(mask_BL.sum()),
        }  # fmt: skip
        log.append(entry)
        after_step(step + 1, entry)
        if checkpoints.due() and step + 1 < len(batches):
            checkpoints.save(step + 1, accelerator.unwrap_model(model), optimizer.optimizer, log)
    model.eval()
    return log
