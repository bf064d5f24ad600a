"""The generation stage: requests in batches, each batch published whole or redone, then all rows as one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mot_core.artifacts import read_jsonl, write_jsonl
from mot_core.completers.base import Completion, Request, batches_of, completer_class
from mot_core.errors import CompletionError
from mot_core.runner import StepContext
from mot_core.spec import Sampling

ROWS = "completions.jsonl"


def complete(context: StepContext) -> dict[str, Any]:
    """Runner of `completions`: every problem × sample index, asked of one teacher."""
    problems = read_jsonl(context.parent_dir("problems") / "problems.jsonl")
    scope = {
        "teacher": context.spec["teacher"], "sampling": context.spec["sampling"], "seed": context.spec["seed"],
        "completer": context.spec["completer"],
    }  # fmt: skip
    requests = [
        Request.of(scope, problem["problem_id"], problem["question"], index)
        for problem in problems
        for index in range(context.spec["num_samples"])
    ]
    rows, batches = obtain_completions(
        context, requests, model=context.spec["teacher"], role="teacher", sampling=context.spec["sampling"],
        completer=context.spec["completer"], batch_size=context.spec["batch_size"],
        max_failed_share=context.spec["max_failed_share"],
    )  # fmt: skip
    write_jsonl(context.work_dir / ROWS, rows)
    return {"num_requests": len(requests), "num_tokens": sum(row["num_tokens"] for row in rows), "parts": batches}


def obtain_completions(
    context: StepContext, requests: list[Request], *, model: Mapping[str, Any], role: str,
    sampling: Mapping[str, Any], completer: str, batch_size: int, max_failed_share: float,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """All rows, in request order, and the identities of the batches that hold them.

    Raises:
        CompletionError: more than `max_failed_share` of the requests failed.
    """
    writer = completer_class(completer)(
        context.model_dir(role), context.step.locators.get(f"{role}_revision"), Sampling(**sampling),
        context.settings.device, context.models.get,
    )  # fmt: skip
    batches = batches_of(requests, batch_size)
    rows: dict[str, dict[str, Any]] = {}
    identities = []
    started, written = time.monotonic(), 0

    for index, batch in enumerate(batches):

        def tell(tokens: int, index: int = index) -> None:
            nonlocal written
            written += tokens
            rate = written / max(1e-9, time.monotonic() - started)
            context.progress(index, len(batches), "batches", tokens_per_second=rate)

        published = context.substep(
            "completion-batch",
            {
                "model": dict(model), "sampling": dict(sampling), "completer": completer,
                "requests": [request.key for request in batch],
            },
            _batch_writer(writer.complete, batch, tell),
        )  # fmt: skip
        identities.append(published.identity)
        rows.update((row["key"], row) for row in read_jsonl(published.path / ROWS))
        context.progress(index + 1, len(batches), "batches")
    ordered = [rows[request.key] for request in requests]
    failed = [row for row in ordered if row["finish_reason"] == "failed"]
    if len(failed) > max_failed_share * len(ordered):
        raise CompletionError(
            f"{len(failed)} of {len(ordered)} requests failed, more than the allowed share {max_failed_share:g}; "
            f"the first reason: {failed[0]['reason']!r}"
        )
    return ordered, identities


def _batch_writer(
    write: Callable[[list[Request], Callable[[int], None]], list[Completion]],
    batch: list[Request],
    tell: Callable[[int], None],
) -> Callable[[Path], dict[str, Any]]:
    def compute(work_dir: Path) -> dict[str, Any]:
        completions = write(batch, tell)
        write_jsonl(work_dir / ROWS, [completion.to_json() for completion in completions])
        return {"num_requests": len(batch), "num_tokens": sum(completion.num_tokens for completion in completions)}

    return compute
