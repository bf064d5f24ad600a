"""The untrained student as a measure of rationales: does its template hold one, how long is one, how likely.

Invariant: a rationale is measured as it would be trained on: rendered in the student's template, end token included.
Imported by workers and by the stand-alone form alone; torch is imported when something is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mot_core.corpus.candidates import Progress
from mot_core.corpus.tables import example_messages
from mot_core.errors import ModelError, TrainingError
from mot_core.prompts import check_renderable
from mot_core.reasoning import parse_completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mot_core.sft.tokens import Example

# Logits take vocabulary × tokens × 4 bytes: 2.5 GB here for a vocabulary of 152,000.
_BATCH_TOKENS = 4096

Load = Callable[[tuple[Any, ...], Callable[[], Any]], Any]


@dataclass(frozen=True)
class Student:
    """A student's model, loaded when it is needed. `load(key, make)` keeps it for the next step of a job."""

    locator: str
    revision: str | None
    device: str = "cpu"
    load: Load = lambda key, make: make()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from mot_core.models import load_tokenizer

        return load_tokenizer(self.locator, self.revision)

    def measure(self, question: str, text: str) -> tuple[int, str]:
        """`(completion tokens, why it cannot be trained on)`; the second is empty if it can, the first then counts."""
        try:
            example = self.encode(question, text)
        except TrainingError as error:
            return 0, str(error).partition(": ")[2]  # without the place, which a rejection has anyway
        except ModelError:
            fault = check_renderable(self.tokenizer, question, parse_completion(text))
            if fault is None:
                raise
            return 0, fault
        # Nearly every rationale is without the unknown token, and then costs one rendering.
        if self.tokenizer.unk_token_id in example.input_ids:
            fault = check_renderable(self.tokenizer, question, parse_completion(text))
            if fault is not None:
                return 0, fault
        return example.completion_tokens, ""

    def encode(self, question: str, text: str) -> Example:
        """A rationale's tokens as training makes them.

        Raises:
            TrainingError: prompt and completion share a token.
        """
        from mot_core.sft.tokens import tokenize

        row = {"teacher": "", "problem_id": "", "question": question, "messages": example_messages(question, text)}
        return tokenize(self.tokenizer, row)

    def mean_log_probs(self, examples: Sequence[Example], progress: Progress) -> list[float]:
        """The mean log-probability of a completion's tokens given its prompt, in fp32, for each example."""
        from mot_core.models import load_model

        model = self.load(
            ("score", self.locator, self.revision, self.device),
            lambda: load_model(self.locator, self.revision, self.device),
        )
        # Equal examples are scored once: in another batch the same one may differ in its last digits.
        unique = {(len(one.input_ids), tuple(one.input_ids), one.prompt_length): one for one in examples}
        scores: dict[tuple[Any, ...], float] = {}
        for batch in _batches(sorted(unique)):
            scored = _score_batch(model, [unique[key] for key in batch], self.tokenizer.pad_token_id or 0)
            scores.update(zip(batch, scored, strict=True))
            progress(len(scores), len(unique), "rationales scored")
        return [scores[len(one.input_ids), tuple(one.input_ids), one.prompt_length] for one in examples]


def _batches(keys: list[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    """Keys that begin with a length, ascending, in groups whose padded size stays under `_BATCH_TOKENS` if it can."""
    batches: list[list[tuple[Any, ...]]] = []
    for key in keys:
        if batches and key[0] * (len(batches[-1]) + 1) <= _BATCH_TOKENS:
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches


def _score_batch(model: Any, examples: list[Example], pad_id: int) -> list[float]:
    import torch

    from mot_core.sft.layout import collate

    batch = collate(examples, "padded", pad_id).to(model.device)
    with torch.inference_mode():
        logits_BLV = model(input_ids=batch.ids_BL, attention_mask=batch.mask_BL, use_cache=False).logits
        scores = []
        for row, example in enumerate(examples):
            end = len(example.input_ids)
            logits_TV = logits_BLV[row, example.prompt_length - 1 : end - 1].float()
            targets_T1 = batch.ids_BL[row, example.prompt_length : end, None]
            log_probs_T = logits_TV.gather(1, targets_T1)[:, 0] - logits_TV.logsumexp(1)
            scores.append(float(log_probs_T.double().mean()))
    return scores
