"""The oracle of branch training: TRL's SFTTrainer on the same tokens, in the same order, gives the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.models import load_model, load_tokenizer
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.students import load_student
from mot_core.sft.tokens import batch_schedule, tokenize
from mot_core.sft.train import Course, Trainee, train
from mot_core.spec import Training
from tests.pico import example_row
from tests.sft.branches import QUESTIONS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NUM_STEPS, BATCH_SIZE, RATE = 8, 3, 3e-3
SETTINGS = {
    "learning_rate": RATE, "batch_size": BATCH_SIZE, "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.01,
    "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0, "max_example_tokens": 192,
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    "as it is by default": {},
    "packed, in several passes, by the chunk": {
        "layout": "packed", "micro_batch_tokens": 100, "loss": "chunked", "loss_chunk_tokens": 7, "gradient_checkpointing": True
    },
}  # fmt: skip


def trl_losses(
    model: Any, tokenizer: Any, rows: list[dict[str, list[int]]], out: Path
) -> tuple[list[float], list[float]]:
    """Losses and learning rates of TRL's trainer, step by step, on rows in their order."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    config = SFTConfig(
        output_dir=str(out), per_device_train_batch_size=BATCH_SIZE, max_steps=NUM_STEPS, learning_rate=RATE,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.95, max_grad_norm=1.0,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False, fp16=False, packing=False,
        gradient_checkpointing=False, completion_only_loss=True, max_length=None, disable_tqdm=True, optim="adamw_torch",
        dataloader_num_workers=0,
    )  # fmt: skip
    trainer = InOrder(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [entry["loss"] for entry in history], [entry["learning_rate"] for entry in history]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_weights_are_trls(pico_models: Path, tmp_path: Path, layout: str) -> None:
    place = str(pico_models / "student")
    tokenizer = load_tokenizer(place)
    examples = [tokenize(tokenizer, example_row(question)) for question in QUESTIONS]
    batches = batch_schedule([len(example.input_ids) for example in examples], BATCH_SIZE, NUM_STEPS, seed=1)

    settings = Training.model_validate({**SETTINGS, **LAYOUTS[layout]})
    ours = load_student(place, None, "cpu", settings, seed=1)
    log = train(
        Trainee(ours, settings, tokenizer.pad_token_id), examples, batches, Course(1, 0, 0, NUM_STEPS),
        Checkpoints(tmp_path, 1e9), after_step=lambda done, entry: None,
    )  # fmt: skip

    rows = [
        {
            "input_ids": examples[index].input_ids,
            "completion_mask": [0] * examples[index].prompt_length + [1] * examples[index].completion_tokens,
        }
        for batch in batches
        for index in batch
    ]
    theirs = load_model(place, None, "cpu")
    losses, rates = trl_losses(theirs, tokenizer, rows, tmp_path / "trl")
    assert [entry["loss"] for entry in log] == pytest.approx(losses, rel=1e-4)
    assert log[-1]["loss"] < log[0]["loss"] - 0.3, "the comparison is of a model that learns"
    assert [entry["learning_rate"] for entry in log] == pytest.approx(rates, rel=1e-6)
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(
            mine, other.to(mine.dtype), rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
