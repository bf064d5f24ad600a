"""Training examples as token ids with a loss mask, and the order in which a branch sees them.

Invariant: exactly the completion, its end token included, carries loss; nothing is cut or left out uncounted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mot_core.errors import TrainingError
from mot_core.identity import derive_seed
from mot_core.prompts import render_example
from mot_core.reasoning import Rationale

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW_BATCHES = 8


@dataclass(frozen=True)
class Example:
    """One example's token ids; the first `prompt_length` of them carry no loss."""

    input_ids: list[int]
    prompt_length: int
    problem_id: str = ""
    name: str = "an example"

    @property
    def completion_tokens(self) -> int:
        return len(self.input_ids) - self.prompt_length

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss: those of the completion that have a token before them."""
        return len(self.input_ids) - max(1, self.prompt_length)


@dataclass(frozen=True)
class Tokenized:
    """A corpus's examples within the length limit, and what the limit did to the others."""

    examples: list[Example]
    num_dropped: int = 0
    num_cut: int = 0


def tokenize(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> Example:
    """A corpus row as an example, whatever its length.

    Raises:
        ModelError: a template that loses the rationale.
        TrainingError: an empty completion, or prompt and completion that fuse into one token.
    """
    name = f"rationale of {row['teacher']} on {row['problem_id']}"
    assistant = row["messages"][-1]
    rationale = Rationale(assistant["reasoning_content"] or "", assistant["content"])
    prompt, completion = render_example(tokenizer, row["question"], rationale)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    if ids[: len(prompt_ids)] != prompt_ids:
        raise TrainingError(f"{name}: prompt and completion share a token, so the loss mask cannot part them")
    example = Example(ids, len(prompt_ids), row["problem_id"], name)
    if example.num_targets <= 0:
        raise TrainingError(f"{name}: the completion is empty, nothing would carry loss")
    return example


def within_limit(examples: Sequence[Example], max_tokens: int, too_long: str) -> Tokenized:
    """The examples as `too_long` says: longer ones stop the branch, are dropped, or lose their end. One of which only
    the prompt would be left is dropped.

    Raises:
        TrainingError: an example over the limit under `error`, or a limit that leaves nothing.
    """
    kept: list[Example] = []
    num_cut = 0
    for example in examples:
        length = len(example.input_ids)
        if length <= max_tokens:
            kept.append(example)
        elif too_long == "error":
            raise TrainingError(
                f"{example.name}: {length} tokens, over training.max_example_tokens = {max_tokens}; raise it, or set "
                "training.too_long to drop or cut (both are counted)"
            )
        elif too_long == "cut" and max_tokens > max(1, example.prompt_length):
            kept.append(replace(example, input_ids=example.input_ids[:max_tokens]))
            num_cut += 1
    if not kept:
        raise TrainingError(
            f"none of {len(examples)} examples is within training.max_example_tokens = {max_tokens}; raise it"
        )
    return Tokenized(kept, len(examples) - len(kept), num_cut)


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """`(to train on, held out)`: a share of the problems, the same whichever teacher, round or seed.

    Raises:
        TrainingError: too few problems to hold any out and train on the rest.
    """
    problems = sorted({example.problem_id for example in examples}, key=lambda name: derive_seed("held-out", name))
    held = set(problems[: math.ceil(share * len(problems))])
    if len(held) == len(problems):
        raise TrainingError(
            f"early_stop holds out {len(held)} of {len(problems)} problems, so none is left to train on; lower "
            "training.early_stop.held_out_share or give more problems"
        )
    return [one for one in examples if one.problem_id not in held], [one for one in examples if one.problem_id in held]


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
