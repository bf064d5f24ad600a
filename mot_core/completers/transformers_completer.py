"""Completions by transformers' own `generate`, for a CPU or for a model that no engine serves.

Invariant: what a request draws depends on its seed, not on its neighbours; only the padding of its batch can
touch its logits (about 4e-7 in fp32), and batches are a pure function of the request set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import transformers
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria

from mot_core.completers.base import Accept, Completion, Request, Source
from mot_core.completers.noise import RequestNoise
from mot_core.models import load_model, load_tokenizer, padding_id
from mot_core.prompts import render_prompt
from mot_core.reasoning import with_opening_mark


class TransformersCompleter:
    """Batched generation on one device. The model is loaded at the first batch that is really needed."""

    batched: ClassVar[bool] = True

    def __init__(self, source: Source) -> None:
        self.source = source

    def facts(self) -> dict[str, Any]:
        return {
            "engine": "transformers", "version": transformers.__version__, "torch": torch.__version__,
            "dtype": "float32", "device": self.source.device, "threads": self.source.threads,
            "randomness": "Gumbel noise by request seed; rebatching moves logits by about 4e-7",
        }  # fmt: skip

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        started = time.monotonic()
        source = self.source
        model, tokenizer = source.load(
            ("complete", source.locator, source.revision, source.device),
            lambda: (
                load_model(source.locator, source.revision, source.device),
                load_tokenizer(source.locator, source.revision),
            ),
        )
        prompts = [
            render_prompt(tokenizer, request.question, system=source.system, template_kwargs=source.template_kwargs)
            for request in requests
        ]
        # The template has written the special tokens; adding them again would double the first one.
        inputs = tokenizer(
            prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(model.device)
        prompt_lengths = inputs["attention_mask"].sum(1).tolist()
        written = self._generate(model, tokenizer, inputs, [request.seed for request in requests], progress)
        seconds = (time.monotonic() - started) / len(requests)
        completions = []
        for request, prompt, prompt_tokens, ids in zip(requests, prompts, prompt_lengths, written, strict=True):
            ended = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            text = with_opening_mark(prompt, tokenizer.decode(ids, skip_special_tokens=True))
            completions.append(
                Completion.of(
                    request, text, len(ids) + ended, "stop" if ended else "length", prompt=prompt,
                    prompt_tokens=prompt_tokens, seconds=seconds,
                )
            )  # fmt: skip
        accept(completions)

    def _generate(
        self, model: Any, tokenizer: Any, inputs: Any, seeds: list[int], progress: Callable[[int], None]
    ) -> list[list[int]]:
        """Token ids written after each prompt, padding included."""
        prompt_length = inputs["input_ids"].shape[1]
        config = GenerationConfig(
            max_new_tokens=self.source.sampling.max_completion_tokens, do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=padding_id(tokenizer),
        )  # fmt: skip
        noise = RequestNoise(seeds, prompt_length, self.source.sampling)
        with torch.inference_mode():
            output = model.generate(
                **inputs, generation_config=config, logits_processor=LogitsProcessorList([noise]),
                stopping_criteria=[_Progress(progress, len(seeds))],
            )  # fmt: skip
        written: list[list[int]] = output[:, prompt_length:].tolist()
        return written


class _Progress(StoppingCriteria):
    """Never stops; tells every 16 positions how many tokens were written."""

    def __init__(self, progress: Callable[[int], None], batch: int) -> None:
        self.progress, self.batch, self.steps = progress, batch, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.steps += 1
        if self.steps % 16 == 0:
            self.progress(16 * self.batch)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
