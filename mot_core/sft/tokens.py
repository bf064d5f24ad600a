"""Training examples as token ids with a loss mask, and the order in which a branch sees them.

Invariant: exactly the completion, its end token included, carries loss; nothing is cut silently.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mot_core.errors import TrainingError
from mot_core.identity import derive_seed
from mot_core.prompts import Rationale, render_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
WINDOW_BATCHES = 8


@dataclass(frozen=True)
class Example:
    """One example's token ids; the first `prompt_length` of them carry no loss."""

    input_ids: list[int]
    prompt_length: int

    @property
    def completion_tokens(self) -> int:
        return len(self.input_ids) - self.prompt_length


def tokenize(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], max_tokens: int) -> Example:
    """A corpus row as an example.

    Raises:
        ModelError: a template that loses the rationale.
        TrainingError: an empty completion, prompt and completion that fuse into one token, or too many tokens.
    """
    where = f"rationale of {row['teacher']} on {row['problem_id']}"
    assistant = row["messages"][-1]
    rationale = Rationale(assistant["reasoning_content"] or "", assistant["content"])
    prompt, completion = render_example(tokenizer, row["question"], rationale)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    if ids[: len(prompt_ids)] != prompt_ids:
        raise TrainingError(f"{where}: prompt and completion share a token, so the loss mask cannot part them")
    if len(ids) == len(prompt_ids):
        raise TrainingError(f"{where}: the completion is empty, nothing would carry loss")
    if len(ids) > max_tokens:
        raise TrainingError(
            f"{where}: {len(ids)} tokens, over training.max_example_tokens = {max_tokens}; raise it (nothing is cut)"
        )
    return Example(ids, len(prompt_ids))


def batch_schedule(lengths: list[int], batch_size: int, num_steps: int, seed: int) -> list[list[int]]:
    """Example indices of each step's batch: a pure function of its arguments.

    Fresh permutations follow one another; within each window of `WINDOW_BATCHES` batches, examples are sorted by
    length, so that little is padded, and the window's batches are shuffled. Over an epoch each example is seen once.
    """
    order = random.Random(derive_seed("order", seed))
    stream: list[int] = []
    batches: list[list[int]] = []
    while len(batches) < num_steps:
        needed = batch_size * min(WINDOW_BATCHES, num_steps - len(batches))
        while len(stream) < needed:
            permutation = list(range(len(lengths)))
            order.shuffle(permutation)
            stream += permutation
        window, stream = stream[:needed], stream[needed:]
        window.sort(key=lambda index: (lengths[index], index))
        chunks = [window[start : start + batch_size] for start in range(0, needed, batch_size)]
        order.shuffle(chunks)
        batches += chunks
    return batches


def collate(examples: list[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(input_ids, attention_mask, labels)`, each (B, L), right-padded; labels are IGNORED outside completions."""
    length = max(len(example.input_ids) for example in examples)
    ids_BL = torch.full((len(examples), length), pad_id, dtype=torch.int64)
    mask_BL = torch.zeros((len(examples), length), dtype=torch.int64)
    labels_BL = torch.full((len(examples), length), IGNORED, dtype=torch.int64)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.input_ids)
        ids_BL[row, : len(tokens)] = tokens
        mask_BL[row, : len(tokens)] = 1
        labels_BL[row, example.prompt_length : len(tokens)] = tokens[example.prompt_length :]
    return ids_BL, mask_BL, labels_BL
