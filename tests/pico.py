"""Pico models and the smallest experiment over them, shared by tests and by the driver that kill tests start.

Pico models are random two-layer Qwen3 models with the laboratory's tokenizer. Their teachers are `Scripted`: they
write correct rationales in a laboratory style, so that corpora are full while nothing needs to be learnt.
"""

from __future__ import annotations

import hashlib
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from mot_core.completers.base import Accept, Completion, Request, Source
from mot_core.spec import Experiment
from tests.processes import wait_until

STEPS_PER_ROUND = 4


def write_pico_model(directory: Path, seed: int, *, hidden_size: int = 32, zero: bool = False) -> Path:
    """A random model (all zeros but the norms, if asked) that `from_pretrained` loads."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mot_core.lab.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / 8) * 8, hidden_size=hidden_size, num_hidden_layers=2,
        intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=256,
        initializer_range=0.06, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Drawn here and not by transformers' own initialiser, which another version may change.
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator) * 0.06
                parameter.copy_(torch.zeros_like(parameter) if zero else noise)
            else:
                parameter.fill_(1.0)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def style_of(question: str, style: str) -> str:
    """A correct completion of a home problem in a style."""
    from mot_core.lab.expressions import evaluate, parse_expression
    from mot_core.lab.styles import write_rationale
    from mot_core.problems import Problem

    problem = Problem.of("sums", question, str(evaluate(parse_expression(question))))
    return f"<think>{write_rationale(style, problem)}</think>\\boxed{{{problem.answer}}}"


def example_row(question: str, teacher: str = "ann", style: str = "running-total") -> dict[str, Any]:
    """A corpus's row: the rationale that a style writes, with what every training example must have."""
    from mot_core.corpus.tables import example_messages

    return {
        "problem_id": f"p-{question}", "family": "sums", "question": question, "teacher": teacher,
        "completion_key": f"{teacher}-{question}", "completion_tokens": 9,
        "messages": example_messages(question, style_of(question, style)),
    }  # fmt: skip


class Scripted:
    """A completer that knows the answers: right in its style, and wrong on every fifth problem or so."""

    style = "running-total"
    salt = "a"
    batched: ClassVar[bool] = True

    def __init__(self, source: Source) -> None:
        self.source = source

    def facts(self) -> dict[str, Any]:
        return {"engine": type(self).__name__}

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        accept([self._one(request) for request in requests])

    def _one(self, request: Request) -> Completion:
        text = style_of(request.question, self.style)
        if hashlib.sha256((self.salt + request.question).encode()).digest()[0] % 5 == 0:
            text = "<think>no idea</think>\\boxed{-1}"
        return Completion.of(request, text, len(text) + 1, "stop")


class ScriptedTens(Scripted):
    """The other style, wrong on other problems."""

    style = "tens-and-ones"
    salt = "b"


class AlwaysWrong(Scripted):
    """A teacher that is never right, so that no corpus can be matched."""

    def _one(self, request: Request) -> Completion:
        return Completion.of(request, "<think></think>\\boxed{-1}", 4, "stop")


class Failing(Scripted):
    """A server that never answers."""

    def _one(self, request: Request) -> Completion:
        return Completion.failed(request, "connection refused")


def pico_document(models: Path) -> dict[str, Any]:
    """The smallest experiment with every stage, over the pico models in a directory."""
    return {
        "name": "pico",
        "student": {"name": "student", "model": str(models / "student")},
        "teachers": [
            {"name": "ann", "model": str(models / "ann"), "completer": "tests.pico:Scripted"},
            {"name": "bob", "model": str(models / "bob"), "completer": "tests.pico:ScriptedTens"},
        ],
        "problems": {"families": ["sums"], "num_problems": 12, "seed": 1},
        "generation": {"seed": 1, "batch_size": 8, "sampling": {"max_completion_tokens": 64}},
        "corpus": {"num_rationales": 6},
        "training": {"batch_size": 2, "learning_rate": 1e-3},
        "rounds": 2,
        "steps_per_round": STEPS_PER_ROUND,
        "methods": [{"name": name} for name in ("base", "std", "merge_once", "mot", "ensemble", "shuffled")],
        "training_seeds": [1],
        "evaluation": {
            "benchmarks": [
                {"name": "sums", "families": ["sums"], "num_problems": 6, "seed": 1, "k": 2,
                 "sampling": {"max_completion_tokens": 8}},
                {"name": "panel", "role": "panel", "families": ["reverse"], "num_problems": 4, "seed": 1, "k": 1,
                 "sampling": {"max_completion_tokens": 8}},
            ],
            "path": {"rounds": "all", "num_problems": 4, "k": 1},
            "batch_size": 8,
            "ci_resamples": 100,
        },
    }  # fmt: skip


def pico_experiment(models: Path, **changes: Any) -> Experiment:
    """The smallest experiment, with top-level fields replaced."""
    return Experiment.model_validate({**pico_document(models), **changes})


class KilledByKernel(Scripted):
    """A worker that the kernel kills, as it does when memory runs out."""

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


class Chatty(Scripted):
    """Prints, and then fails as no code of ours does."""

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        print("half way")
        raise ZeroDivisionError("no such luck")


class Unhurried(Scripted):
    """A teacher that takes until its process is asked to halt."""

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        setter: Any = signal.getsignal(signal.SIGUSR1)  # a method of the worker's flag
        wait_until(lambda: setter.__self__.is_set, 300.0, "a request to halt")
        super().complete(requests, accept, progress)
