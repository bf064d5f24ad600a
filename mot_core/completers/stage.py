"""The generation stage: what is missing is asked for, every answer is journaled at once, all rows become one step.

Invariant: a request that the journal holds an answer to is never asked again, whichever experiment, version of this
program or attempt wants it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mot_core.completers.base import Completer, Completion, Request, Source, batches_of, completer_class
from mot_core.completers.journal import Journal, Shard, locked_journal, locked_shard, take_up_shards
from mot_core.errors import CompletionError
from mot_core.files import read_jsonl, write_jsonl
from mot_core.runner import StepContext
from mot_core.spec import Sampling

ROWS = "completions.jsonl"


@dataclass(frozen=True)
class Ask:
    """Who is asked, how, and what is done with failures."""

    role: str
    """`teacher`, `student` or `judge`: the context's role whose model answers."""
    scope: Mapping[str, Any]
    """What a journal is kept for: model, sampling, completer."""
    sampling: Mapping[str, Any]
    completer: str
    batch_size: int
    max_failed_share: float
    system: str | None = None
    template_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, role: str, model: Mapping[str, Any], spec: Mapping[str, Any]) -> Ask:
        """From a step's spec, and what in it stands for the model that is asked."""
        return cls(
            role, journal_scope(model, spec["sampling"], spec["completer"]), spec["sampling"], spec["completer"],
            spec["batch_size"], spec["max_failed_share"], model.get("system"), model.get("template_kwargs"),
        )  # fmt: skip


def complete(context: StepContext) -> dict[str, Any]:
    """Runner of `completions`: every problem × sample index, asked of one teacher."""
    ask = Ask.of("teacher", context.spec["teacher"], context.spec)
    completions, counts = obtain_completions(context, _requests(context), ask)
    write_jsonl(context.work_dir / ROWS, [completion.published() for completion in completions])
    return counts


def complete_shard(context: StepContext, shard: Shard) -> None:
    """Answer one part of what a `completions` step asks, into a journal that the step takes up. Whole batches go to a
    shard, so that each is asked as it would be without shards."""
    ask, requests = Ask.of("teacher", context.spec["teacher"], context.spec), _requests(context)
    index, count = shard
    batched = completer_class(ask.completer).batched
    batches = batches_of(requests, ask.batch_size) if batched else [[request] for request in requests]
    own = {request.key for batch in batches[index::count] for request in batch}
    with locked_shard(context.store, ask.scope, shard) as (journal, answered):
        missing = {key for key in own if key not in answered and not journal.answered(key)}
        _ask_for(missing, context, requests, ask, journal, ask.max_failed_share * len(own))


def _requests(context: StepContext) -> list[Request]:
    """Every problem × sample index."""
    spec = context.spec
    scope = {name: spec[name] for name in ("teacher", "sampling", "seed", "completer")}
    return [
        Request.of(scope, problem["problem_id"], problem["question"], index)
        for problem in read_jsonl(context.parent_dir("problems") / "problems.jsonl")
        for index in range(spec["num_samples"])
    ]


def journal_scope(model: Mapping[str, Any], sampling: Mapping[str, Any], completer: str) -> dict[str, Any]:
    """What one journal is kept for. Seeds are in the keys."""
    return {"model": dict(model), "sampling": dict(sampling), "completer": completer}


def obtain_completions(
    context: StepContext, requests: list[Request], ask: Ask
) -> tuple[list[Completion], dict[str, Any]]:
    """All completions, in request order, and the step's counts.

    Raises:
        CompletionError: more than `max_failed_share` of the requests failed, or a completer can go on no more.
    """
    with locked_journal(context.store, ask.scope) as journal:
        taken, engines = take_up_shards(context.store, ask.scope, journal)
        missing = {request.key for request in requests if not journal.answered(request.key)}
        taken = {request.key for request in requests if request.key in taken}
        own = _ask_for(missing, context, requests, ask, journal, ask.max_failed_share * len(requests))
        completions = list(journal.rows([request.key for request in requests]))
    ended = [completion.finish_reason for completion in completions]
    return completions, {
        "num_requests": len(requests), "num_asked": len(missing | taken), "num_failed": ended.count("failed"),
        "num_absent": ended.count("absent"), "num_tokens": sum(completion.num_tokens for completion in completions),
        "prompt_tokens": sum(completion.prompt_tokens for completion in completions), "engines": [*engines, *(facts for facts in own if facts not in engines)],
    }  # fmt: skip


def _ask_for(
    missing: set[str], context: StepContext, requests: list[Request], ask: Ask, journal: Journal, max_failed: float
) -> list[dict[str, Any]]:
    """Ask some of the requests; the facts of the engine that answered them (none if there were none)."""
    if not missing:
        return []
    writer = completer_class(ask.completer)(_source(context, ask, journal))
    intake = _Intake(context, writer, journal, len(missing), max_failed)
    if writer.batched:
        # A batch is a function of all requests, so that what a killed run left asks in the batches it would have had.
        for batch in batches_of(requests, ask.batch_size):
            wanted = [request for request in batch if request.key in missing]
            if wanted:
                writer.complete(wanted, intake.accept, intake.progress)
    else:
        wanted = [request for request in requests if request.key in missing]
        writer.complete(wanted, intake.accept, intake.progress)
    unanswered = [key for key in missing if key not in journal.places]
    assert not unanswered, f"completer {ask.completer} accepted no row for {len(unanswered)} of its requests"
    return [dict(writer.facts())]


def _source(context: StepContext, ask: Ask, journal: Journal) -> Source:
    locators = context.step.locators
    return Source(
        locator=context.model_dir(ask.role), revision=locators.get(f"{ask.role}_revision"),
        sampling=Sampling(**ask.sampling), devices=context.settings.devices, threads=context.settings.threads,
        system=ask.system, template_kwargs=ask.template_kwargs or {},
        settings=locators.get(f"{ask.role}_settings") or {}, load=context.models.get,
        scratch=context.store.root / "logs", spent=dict(journal.spent),
    )  # fmt: skip


class _Intake:
    """Takes a completer's rows: journals them, counts failures, tells progress."""

    def __init__(
        self, context: StepContext, writer: Completer, journal: Journal, num_wanted: int, max_failed: float
    ) -> None:
        self.context, self.writer, self.journal = context, writer, journal
        self.num_wanted, self.max_failed = num_wanted, max_failed
        self.num_done, self.num_tokens, self.started = 0, 0, time.monotonic()
        self.reasons: list[str] = []

    def accept(self, completions: list[Completion]) -> None:
        self.journal.append(completions, self.writer.facts())
        self.num_done += len(completions)
        self.reasons += [one.reason for one in completions if one.finish_reason == "failed"]
        if len(self.reasons) > self.max_failed:
            raise CompletionError(
                f"{len(self.reasons)} of {self.num_done} requests failed so far, more than the spec allows "
                f"({self.max_failed:g}: max_failed_share of all); the first reason: {self.reasons[0]!r}; what was "
                "answered is kept: mend the cause and run the same command again"
            )
        self.progress(0)

    def progress(self, tokens: int) -> None:
        self.num_tokens += tokens
        rate = self.num_tokens / max(1e-9, time.monotonic() - self.started)
        self.context.progress(self.num_done, self.num_wanted, "completions", tokens_per_second=rate)
