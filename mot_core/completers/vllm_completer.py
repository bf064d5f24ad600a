"""Completions by vLLM's offline engine, in an OS process of its own.

Why a process: vLLM keeps a device's memory as long as its process lives, and its pins of torch and others differ from
this program's. The core renders, tokenizes and decodes with the tokenizer that the transformers completer uses; the
engine sees token ids only. Invariant: a text is what that completer would have decoded from the same tokens.

No batch barrier: all requests are handed over in order, at most `vllm_process.IN_FLIGHT` at once, and a row is accepted
soon after it has ended. Each has its own seed; vLLM does not promise equal outputs in other batches, and nor do we.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mot_core.completers.base import Accept, Completion, Request, Source
from mot_core.completers.vllm_launch import launches, require_free_memory
from mot_core.completers.vllm_process import Answer, Ask, Engines
from mot_core.errors import WorkerError
from mot_core.identity import canonical_json
from mot_core.models import load_tokenizer, local_copy
from mot_core.prompts import render_prompt
from mot_core.reasoning import with_opening_mark
from mot_core.spec import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUP_ROWS, GROUP_SECONDS = 256, 0.5
"""Rows are accepted in groups of this size or age: a durable write a row would cost more than the row."""
PROGRESS_SECONDS = 0.5
RENDERED = 32
"""Requests rendered and tokenized together, while the engine works on those before."""
log = logging.getLogger("mot.vllm")


@dataclass
class Served:
    """A model with its tokenizer and engines, kept from step to step of a job."""

    directory: Path
    tokenizer: PreTrainedTokenizerBase
    engines: Engines

    def close(self) -> None:
        self.engines.close()


@dataclass(frozen=True)
class Asked:
    """A request on its way."""

    request: Request
    prompt: str
    prompt_tokens: int
    started: float


class VllmCompleter:
    """The offline engine, loaded at the first request that is really needed."""

    batched: ClassVar[bool] = False

    def __init__(self, source: Source) -> None:
        self.source = source
        self.engine = Engine(**source.settings)
        self._facts: dict[str, Any] = {"engine": "vllm"}

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        """Accept a row a request. A prompt that leaves no room in the context is a failed row; one that leaves less
        than `max_completion_tokens` is asked for what fits, and counts as `length` when it is cut there.

        Raises:
            ModelError: vLLM cannot serve the model.
            WorkerError: no memory for it, no vLLM, or the engine has died; what was answered before is accepted.
        """
        served = self._served()
        group = _Group(accept)
        try:
            self._start(served)
            try:
                self._stream(served, requests, group, progress)
            finally:
                group.accept_now()
        except BaseException:
            self._abandon(served)
            raise

    def _stream(self, served: Served, requests: list[Request], group: _Group, progress: Callable[[int], None]) -> None:
        asked: dict[int, Asked] = {}
        asks = self._asks(served, requests, asked, group)
        uncounted, told = 0, time.monotonic()
        for tokens, answers in served.engines.stream(self.sampling(served.tokenizer), asks):
            for answer in answers:
                group.add(_completion(served.tokenizer, asked.pop(answer.id), answer))
            group.accept_if_due()
            uncounted += tokens
            if uncounted and time.monotonic() - told > PROGRESS_SECONDS:
                progress(uncounted)
                uncounted, told = 0, time.monotonic()
        progress(uncounted)

    def _asks(self, served: Served, requests: list[Request], asked: dict[int, Asked], group: _Group) -> Iterator[Ask]:
        """Requests as token ids, rendered when their turn comes; those that cannot be asked become failed rows."""
        context = int(self._facts["max_model_len"])
        for start in range(0, len(requests), RENDERED):
            some = requests[start : start + RENDERED]
            # A problem's samples come in a row; each question is rendered once, all of them are tokenized together.
            prompts = {
                question: render_prompt(
                    served.tokenizer, question, system=self.source.system, template_kwargs=self.source.template_kwargs
                )
                for question in dict.fromkeys(request.question for request in some)
            }
            # The template has written the special tokens; adding them again would double the first one.
            ids = served.tokenizer(list(prompts.values()), add_special_tokens=False)["input_ids"]
            tokens_of = dict(zip(prompts, ids, strict=True))
            for index, request in enumerate(some, start):
                prompt, tokens = prompts[request.question], tokens_of[request.question]
                room = context - len(tokens)
                if room < 1:
                    reason = (
                        f"its prompt of {len(tokens)} tokens leaves no room in the context of {context}; raise "
                        "engine.max_model_len as far as the model allows, or leave the problem out"
                    )
                    group.add(Completion.failed(request, reason, prompt=prompt, prompt_tokens=len(tokens)))
                    continue
                asked[index] = Asked(request, prompt, len(tokens), time.monotonic())
                yield Ask(index, tokens, request.seed, min(room, self.source.sampling.max_completion_tokens))

    def sampling(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What all requests share, in vLLM's words."""
        sampling = self.source.sampling
        return {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0,
            "min_p": sampling.min_p or 0.0, "stop_token_ids": [tokenizer.eos_token_id],
        }  # fmt: skip

    def _served(self) -> Served:
        source = self.source

        def load() -> Served:
            tokenizer = load_tokenizer(source.locator, source.revision)
            directory = local_copy(source.locator, source.revision)
            return Served(directory, tokenizer, Engines(launches(source, self.engine, directory)))

        settings = canonical_json(self.engine.model_dump(mode="json"))
        served: Served = source.load(
            ("vllm", source.locator, source.revision, source.devices, source.threads, settings), load
        )
        return served

    def _start(self, served: Served) -> None:
        """Start the engines if they don't run; note their facts."""
        engines = served.engines
        if not engines.running:
            engines.start(require_free_memory(self.source, self.engine, served.directory))
        engine = self.engine
        self._facts = {
            "engine": "vllm", **engines.running[0].facts, "devices": list(self.source.devices), "threads": self.source.threads,
            "tensor_parallel_size": engine.tensor_parallel_size, "data_parallel_size": engine.data_parallel_size,
            "pipeline_parallel_size": engine.pipeline_parallel_size, "quantization": engine.quantization,
            "engine_args": dict(engine.engine_args),
            "randomness": "vLLM's sampler, seeded a request; outputs are not promised equal across batches",
        }  # fmt: skip

    def _abandon(self, served: Served) -> None:
        """End engines that hold requests nobody waits for; the error on its way is the one to report."""
        try:
            served.engines.close()
        except WorkerError as error:
            log.error("%s", error)


class _Group:
    """Rows that have ended, accepted together once they are many or old."""

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self._rows: list[Completion] = []
        self._oldest = 0.0

    def add(self, row: Completion) -> None:
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(row)

    def accept_if_due(self) -> None:
        if len(self._rows) >= GROUP_ROWS or (self._rows and time.monotonic() - self._oldest > GROUP_SECONDS):
            self.accept_now()

    def accept_now(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._accept(rows)


def _completion(tokenizer: PreTrainedTokenizerBase, asked: Asked, answer: Answer) -> Completion:
    """An answer as a row: cut at the end token and decoded as the transformers completer does."""
    facts = {"prompt": asked.prompt, "prompt_tokens": asked.prompt_tokens, "seconds": time.monotonic() - asked.started}
    if answer.finish_reason == "failed":
        return Completion.failed(asked.request, answer.reason, **facts)
    ended = tokenizer.eos_token_id in answer.tokens
    tokens = answer.tokens[: answer.tokens.index(tokenizer.eos_token_id)] if ended else answer.tokens
    text = with_opening_mark(asked.prompt, str(tokenizer.decode(tokens, skip_special_tokens=True)))
    return Completion.of(asked.request, text, len(tokens) + ended, answer.finish_reason, **facts)
