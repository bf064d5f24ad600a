"""Completions by transformers: a request's sample is its own, whoever else is in its batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mot_core.completers.base import Completion, Request, Source, batches_of, completer_class
from mot_core.completers.transformers_completer import TransformersCompleter
from mot_core.errors import SpecError
from mot_core.models import load_model, load_tokenizer
from mot_core.prompts import render_prompt
from mot_core.runner import ModelCache
from mot_core.spec import Sampling

QUESTIONS = ["1+1", "12+34-5", "2*31+7-11", "99-9", "reverse abc", "11+22+33+44", "5", "10-9"]


def requests(num_samples: int = 2) -> list[Request]:
    scope = {"test": 1}
    return [Request.of(scope, f"p{i}", question, s) for i, question in enumerate(QUESTIONS) for s in range(num_samples)]


@pytest.fixture(scope="module")
def complete(pico_models: Path) -> Callable[..., list[Completion]]:
    cache = ModelCache()

    def run(wanted: list[Request], **sampling: Any) -> list[Completion]:
        settings = Sampling(**{"temperature": 0.9, "max_completion_tokens": 12, **sampling})
        groups: list[list[Completion]] = []
        source = Source(str(pico_models / "student"), None, settings, load=cache.get)
        TransformersCompleter(source).complete(wanted, groups.append, lambda tokens: None)
        (rows,) = groups
        return [replace(row, seconds=0.0) for row in rows]

    return run


def test_a_request_names_itself_by_scope_question_and_index() -> None:
    one = Request.of({"a": 1}, "p", "1+1", 0)
    assert (one.key, one.seed) == ("4c361c0a776a9957dd9e5101b34c0827", 1063808065677419289)
    same = Request.of({"a": 1}, "another id", "1+1", 0)
    assert (same.key, same.seed) == (one.key, one.seed)
    others = [
        Request.of({"a": 2}, "p", "1+1", 0),
        Request.of({"a": 1}, "p", "1+2", 0),
        Request.of({"a": 1}, "p", "1+1", 1),
    ]
    assert len({one.seed, *(other.seed for other in others)}) == 4


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_sample_does_not_depend_on_order_or_neighbours(
    complete: Callable[..., list[Completion]], top_p: float
) -> None:
    wanted = requests()
    whole = {completion.key: completion for completion in complete(wanted, top_p=top_p)}
    assert len({completion.text for completion in whole.values()}) == len(wanted), "samples must differ"
    shuffled = random.Random(3).sample(wanted, len(wanted))
    alone = [complete([request], top_p=top_p)[0] for request in wanted[:4]]
    parts = complete(shuffled[:5], top_p=top_p) + complete(shuffled[5:], top_p=top_p)
    for completion in [*parts, *alone]:
        assert completion == whole[completion.key]


def test_rows_come_in_request_order_with_counts(complete: Callable[..., list[Completion]]) -> None:
    wanted = requests(1)
    rows = complete(wanted)
    assert [row.key for row in rows] == [request.key for request in wanted]
    for row in rows:
        assert row.finish_reason in ("stop", "length")
        assert (row.finish_reason == "length") <= (row.num_tokens == 12)
        assert 1 <= row.num_tokens <= 12


def test_temperature_zero_is_generates_own_greedy_search(
    complete: Callable[..., list[Completion]], pico_models: Path
) -> None:
    model = load_model(str(pico_models / "student"), None, "cpu")
    tokenizer = load_tokenizer(str(pico_models / "student"))
    rows = complete(requests(1), temperature=0.0)
    for row, question in zip(rows, QUESTIONS, strict=True):
        inputs = tokenizer(render_prompt(tokenizer, question), return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
                max_new_tokens=12, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )[0, inputs["input_ids"].shape[1] :].tolist()  # fmt: skip
        if tokenizer.eos_token_id in output:
            output = output[: output.index(tokenizer.eos_token_id)]
        assert row.text == tokenizer.decode(output, skip_special_tokens=True)


def test_batches_are_a_function_of_the_set() -> None:
    wanted = requests(3)
    batches = batches_of(wanted, 5)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4]
    for seed in range(3):
        assert batches_of(random.Random(seed).sample(wanted, len(wanted)), 5) == batches
    lengths = [len(request.question) for batch in batches for request in batch]
    assert lengths == sorted(lengths)
    assert sorted(request.key for batch in batches for request in batch) == sorted(request.key for request in wanted)


def test_completers_are_named_or_imported() -> None:
    assert completer_class("transformers") is TransformersCompleter
    assert completer_class("tests.pico:Scripted").__name__ == "Scripted"
    with pytest.raises(SpecError, match="completer 'nobody': 'nobody' is not known here and no import path"):
        completer_class("nobody")
    with pytest.raises(SpecError, match="cannot import 'tests.pico:Nobody'"):
        completer_class("tests.pico:Nobody")
