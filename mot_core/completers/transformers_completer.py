"""Completions by transformers' own `generate`, for a CPU or for a model that no engine serves.

Invariant: what a request draws depends on its seed, not on its neighbours; only the padding of its batch can
touch its logits (about 4e-7 in fp32), and batches are a pure function of the request set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria

from mot_core.completers.base import Completion, Request
from mot_core.completers.noise import RequestNoise
from mot_core.models import load_model, load_tokenizer
from mot_core.prompts import render_prompt
from mot_core.spec import Sampling


class TransformersCompleter:
    """Batched generation on one device. The model is loaded at the first batch that is really needed."""

    def __init__(
        self, locator: str, revision: str | None, sampling: Sampling, device: str, load: Callable[..., Any]
    ) -> None:
        self.locator, self.revision, self.sampling, self.device, self.load = locator, revision, sampling, device, load

    def complete(self, requests: list[Request], progress: Callable[[int], None]) -> list[Completion]:
        model, tokenizer = self.load(
            ("complete", self.locator, self.revision, self.device),
            lambda: (load_model(self.locator, self.revision, self.device), load_tokenizer(self.locator, self.revision)),
        )
        prompts = [render_prompt(tokenizer, request.question) for request in requests]
        # The template has written the special tokens; adding them again would double the first one.
        inputs = tokenizer(
            prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(model.device)
        prompt_length = inputs["input_ids"].shape[1]
        limit = self.sampling.max_completion_tokens
        noise = RequestNoise(
            [request.seed for request in requests], prompt_length, self.sampling.temperature, self.sampling.top_p
        )
        config = GenerationConfig(
            max_new_tokens=limit, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )  # fmt: skip
        with torch.inference_mode():
            output = model.generate(
                **inputs, generation_config=config, logits_processor=LogitsProcessorList([noise]),
                stopping_criteria=[_Progress(progress, len(requests))],
            )  # fmt: skip
        completions = []
        for request, ids in zip(requests, output[:, prompt_length:].tolist(), strict=True):
            ended = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            text = tokenizer.decode(ids, skip_special_tokens=True)
            completions.append(
                Completion(
                    request.key,
                    request.problem_id,
                    request.sample_index,
                    request.seed,
                    text,
                    len(ids) + ended,
                    "stop" if ended else "length",
                )
            )
        return completions


class _Progress(StoppingCriteria):
    """Never stops; tells every 16 positions how many tokens were written."""

    def __init__(self, progress: Callable[[int], None], batch: int) -> None:
        self.progress, self.batch, self.steps = progress, batch, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.steps += 1
        if self.steps % 16 == 0:
            self.progress(16 * self.batch)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
