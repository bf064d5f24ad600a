"""Completions by an OpenAI-compatible endpoint: `vllm serve`, or a hosted model such as DeepSeek-R1.

Every request is one row as soon as its answer is there. Invariant: no request is sent again after its answer was
accepted, none is sent beyond the budget, and the key reaches nothing but the endpoint.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import json
import logging
import time
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

from mot_core.completers.base import Accept, Completion, Request, Source
from mot_core.completers.concurrency import AdaptiveLimit, backoff_seconds
from mot_core.completers.endpoint_budget import TEMPLATE_TOKENS, Budget, Tokens
from mot_core.completers.endpoint_client import SEED_MODULUS, EndpointClient, read_key
from mot_core.completers.endpoint_replies import NO_USAGE, Answer, Failure
from mot_core.errors import CompletionError
from mot_core.identity import derive_seed
from mot_core.prompts import user_messages
from mot_core.spec import Endpoint

LONGEST_HOLD_SECONDS = 900.0
MOST_HOLDS = 30
"""Waits that the endpoint asked for, a request: beyond them each counts as a failure."""
SILENT_REQUESTS = 3
"""Requests given up in a row before an endpoint that never answered counts as down."""
RECORDED_FINGERPRINTS = 16

log = logging.getLogger("mot.endpoint")


class OpenAICompleter:
    """Asks one model at one endpoint, many requests at a time, in one event loop."""

    batched: ClassVar[bool] = False

    def __init__(self, source: Source) -> None:
        self.source = source
        self.endpoint = Endpoint(**source.settings)
        self.budget = Budget(self.endpoint, source.spent)
        self.version = importlib.metadata.version("openai")  # read from the disk: once, not once a row
        self.answered_by = ""
        self.fingerprints: set[str] = set()

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        async def ask_all() -> None:
            async with EndpointClient(self.source, self.endpoint, read_key(self.endpoint)) as client:
                await _Asking(self, client, requests, accept, progress).run()

        asyncio.run(ask_all())

    def note(self, answer: Answer) -> None:
        """Remember who answered, for the facts."""
        self.answered_by = self.answered_by or answer.model
        if len(self.fingerprints) <= RECORDED_FINGERPRINTS and answer.fingerprint:
            self.fingerprints.add(answer.fingerprint)

    def facts(self) -> dict[str, Any]:
        """Without the address, which is a place, and without what is spent, which changes with every row."""
        varies = len(self.fingerprints) > RECORDED_FINGERPRINTS
        return {
            "engine": "openai", "version": self.version, "model": self.answered_by,
            "system_fingerprints": ["varies"] if varies else sorted(self.fingerprints),
            "seed": f"the request's seed modulo {SEED_MODULUS}",
            "determinism": "seeded; whether the server repeats itself is not known",
        }  # fmt: skip


class _Asking:
    """One call of `complete`: workers that take requests in order and ask until each is answered or given up."""

    def __init__(
        self, writer: OpenAICompleter, client: EndpointClient, requests: list[Request], accept: Accept,
        progress: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.writer, self.client, self.endpoint, self.budget = writer, client, writer.endpoint, writer.budget
        self.accept, self.progress = accept, progress
        self.pending, self.num_wanted, self.num_accepted = iter(requests), len(requests), 0
        self.limit = AdaptiveLimit(self.endpoint.max_concurrency)
        self.workers: list[asyncio.Task[None]] = []
        self.flying: set[asyncio.Task[Any] | None] = set()
        self.stop: Failure | str | None = None
        self.was_heard = self.was_served = False
        # Given up after all retries. Whose fault it was, the prompt's or the endpoint's, the next answer tells.
        self.given_up: list[Completion] = []

    async def run(self) -> None:
        self.workers = [
            asyncio.create_task(self._work()) for _ in range(min(self.endpoint.max_concurrency, self.num_wanted))
        ]
        try:
            if self.workers:
                await asyncio.wait(self.workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for worker in self.workers:
                worker.cancel()
            raised = await asyncio.gather(*self.workers, return_exceptions=True)
        for error in raised:
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                raise error
        if self.stop is None and self.given_up and not self.was_served:
            self.stop = _is_down(self.given_up[-1].reason)
        if self.stop is not None:
            raise CompletionError(await self._explain(self.stop))
        self._hand_over([])

    async def _work(self) -> None:
        for request in self.pending:
            messages = user_messages(request.question, self.writer.source.system)
            prompt = json.dumps(messages, ensure_ascii=False)
            most = Tokens(
                len(prompt.encode("utf-8", "replace")) + TEMPLATE_TOKENS,
                self.writer.source.sampling.max_completion_tokens,
            )
            if not await self.budget.reserve(most):
                return self._end(self.budget.refusal(most))
            try:
                asked = await self._ask(request, messages)
            finally:
                self.budget.settle(most)
            if asked is not None:
                self._take(request, prompt, *asked)
            if self.stop is not None:
                return None
        return None

    async def _ask(
        self, request: Request, messages: list[dict[str, str]]
    ) -> tuple[Answer | Failure, int, float] | None:
        """The reply that settles a request, its attempts and the last one's seconds; None if the asking ended before."""
        chance = Random(derive_seed("backoff", request.seed))
        failures = holds = 0
        for attempt in itertools.count(1):
            sent_in_round = await self.limit.admit()
            self.flying.add(asyncio.current_task())
            started = time.monotonic()
            try:
                reply = await self.client.ask(messages, request.seed)
                self._pace(reply, sent_in_round)
            finally:
                self.flying.discard(asyncio.current_task())
                self.limit.release()
            self.budget.record(Tokens(reply.prompt_tokens, reply.completion_tokens))
            if isinstance(reply, Answer) or reply.then != "retry":
                return reply, attempt, time.monotonic() - started
            if reply.hold_seconds is not None and holds < MOST_HOLDS:
                holds += 1
            else:
                failures += 1
            if failures > self.endpoint.max_retries:
                return reply, attempt, time.monotonic() - started
            if self.stop is not None:
                return None
            if reply.hold_seconds is None:
                await asyncio.sleep(backoff_seconds(failures, chance))
        raise AssertionError("unreachable")

    def _pace(self, reply: Answer | Failure, sent_in_round: int) -> None:
        """Let the limit follow a reply."""
        self.was_heard |= isinstance(reply, Answer) or reply.status is not None
        if isinstance(reply, Answer):
            self.limit.answered()
            return
        if reply.throttles and self.limit.throttled(sent_in_round):
            log.info("%s: now at most %d requests at once", reply.reason, int(self.limit.limit))
        if reply.hold_seconds is not None:
            if reply.hold_seconds > LONGEST_HOLD_SECONDS:
                self._end(
                    f"asks to wait {reply.hold_seconds:,.0f} s ({reply.reason}), more than {LONGEST_HOLD_SECONDS:g}"
                )
            self.limit.hold(reply.hold_seconds)

    def _take(self, request: Request, prompt: str, reply: Answer | Failure, attempts: int, seconds: float) -> None:
        """Make a row of what settled a request, or end the asking."""
        if isinstance(reply, Failure) and reply.then == "stop":
            return self._end(reply)
        finish_reason = reply.finish_reason if isinstance(reply, Answer) else "failed"
        row = Completion.of(
            request, reply.text if isinstance(reply, Answer) else "", reply.completion_tokens, finish_reason,
            reason=reply.reason, prompt=prompt, prompt_tokens=reply.prompt_tokens, seconds=seconds, attempts=attempts,
        )  # fmt: skip
        if isinstance(reply, Failure) and reply.then == "retry":
            self.given_up.append(row)
            if len(self.given_up) >= SILENT_REQUESTS + (self.endpoint.max_concurrency if self.was_heard else 0):
                self._end(_is_down(reply.reason), drain=self.was_served)
            return None
        self.was_served = True
        if isinstance(reply, Answer):
            self.writer.note(reply)
        self._hand_over([row])
        if reply.reason == NO_USAGE and self.budget.is_limited:
            self._end(f"{NO_USAGE}, so no budget can be kept: leave endpoint.max_total_tokens and max_cost out")
        return None

    def _hand_over(self, rows: list[Completion]) -> None:
        """Accept rows, one a group, those that were kept back first."""
        kept, self.given_up = self.given_up, []
        for row in [*kept, *rows]:
            self.num_accepted += 1
            self.progress(row.num_tokens)
            self.accept([row])

    def _end(self, why: Failure | str, *, drain: bool = True) -> None:
        """Ask no more. What is in flight is paid for: it may end, unless the endpoint is down."""
        self.stop = self.stop or why
        for worker in self.workers:
            if worker is not asyncio.current_task() and not (drain and worker in self.flying):
                worker.cancel()

    async def _explain(self, why: Failure | str) -> str:
        """What ended the asking, how far it came, and what to do."""
        model, variable = self.client.model, self.endpoint.api_key_env
        if isinstance(why, str):
            cause = why
        elif why.status == 404:
            names = ", ".join(await self.client.served_models())
            remedy = f"it serves {names}: name one of them" if names else "does endpoint.base_url end with /v1?"
            cause = f"does not serve it ({why.reason}); {remedy}"
        elif why.status in (401, 403):
            remedy = f"check the key in {variable}" if variable else "name the variable that holds a key: api_key_env"
            cause = f"refused access ({why.reason}); {remedy}"
        else:
            cause = f"will not answer ({why.reason})"
        address = self.endpoint.base_url.partition("?")[0]  # a query may hold a key
        return (
            f"model {model!r} at {address}: {cause}; {self.num_wanted - self.num_accepted} of {self.num_wanted} requests "
            "are unanswered; what was answered stays, and the same command goes on from there"
        )


def _is_down(reason: str) -> str:
    return f"did not answer ({reason}); start it, or set endpoint.base_url"
