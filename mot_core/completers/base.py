"""The protocol between a stage that wants completions and whoever writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mot_core.identity import derive_seed, fingerprint
from mot_core.runner import device_among
from mot_core.spec import Sampling
from mot_core.steps import load_object

COMPLETERS: dict[str, str] = {
    "transformers": "mot_core.completers.transformers_completer:TransformersCompleter",
    "vllm": "mot_core.completers.vllm_completer:VllmCompleter",
    "openai": "mot_core.completers.openai_completer:OpenAICompleter",
    "corpus": "mot_core.completers.corpus_completer:CorpusCompleter",
}

PUBLISHED = ("key", "problem_id", "sample_index", "seed", "text", "num_tokens", "finish_reason", "reason")
"""The fields of a completion that follow from the request: what a published step holds. The journal holds all."""


@dataclass(frozen=True)
class Request:
    """One completion wanted. `key` names it for ever; `seed` alone decides its randomness."""

    key: str
    problem_id: str
    question: str
    sample_index: int
    seed: int

    @classmethod
    def of(cls, scope: Mapping[str, Any], problem_id: str, question: str, sample_index: int) -> Request:
        """A request in a scope (who is asked, how, under which generation seed): key and seed follow from it."""
        key = fingerprint({"scope": dict(scope), "question": question, "sample_index": sample_index})
        return cls(key, problem_id, question, sample_index, derive_seed("request", key))


@dataclass(frozen=True)
class Completion:
    """One row of output. `finish_reason` is `stop`, `length` (cut at the limit), `failed` (asked, and no answer:
    see `reason`; asked again by the next attempt) or `absent` (there is none to be had: counted, never a failure)."""

    key: str
    problem_id: str
    sample_index: int
    seed: int
    text: str
    num_tokens: int
    finish_reason: str
    reason: str = ""
    prompt: str = ""
    """What the model was given: the rendered text, or the messages as JSON."""
    prompt_tokens: int = 0
    seconds: float = 0.0
    """From asking to having, where the writer knows it for one request; else its share of the batch."""
    attempts: int = 1

    @classmethod
    def of(cls, request: Request, text: str, num_tokens: int, finish_reason: str, **more: Any) -> Completion:
        """The completion of a request."""
        place = (request.key, request.problem_id, request.sample_index, request.seed)
        # Half a surrogate pair, which an endpoint's JSON can hold, has no UTF-8 and could not be stored.
        return cls(*place, text.encode("utf-8", "replace").decode(), num_tokens, finish_reason, **more)

    @classmethod
    def failed(cls, request: Request, reason: str, **more: Any) -> Completion:
        return cls.of(request, "", 0, "failed", reason=reason, **more)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Completion:
        """A completion from a journal's row; keys it does not know are left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in row.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))  # all fields are plain; asdict's deep copy took as long as writing the row

    def published(self) -> dict[str, Any]:
        """The fields that follow from the request alone."""
        return {name: getattr(self, name) for name in PUBLISHED}


@dataclass(frozen=True)
class Source:
    """Whom a completer asks, and how: everything it is built from."""

    locator: str
    """A model directory, hub id, name at an endpoint, or file: whatever the completer reads."""
    revision: str | None
    sampling: Sampling
    devices: tuple[str, ...] = ()
    """The job's GPUs, as in `runner.RunSettings`; none on the CPU."""
    threads: int = 1
    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The completer's own spec as JSON: `Engine`, `Endpoint` or `Rationales`; empty for others."""
    load: Callable[..., Any] = lambda key, make: make()
    """`load(key, make)`: a value kept from step to step of one job (`runner.ModelCache.get`)."""
    scratch: Path | None = None
    """Where a completer may write logs of its own."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """What the journal holds already: `prompt_tokens` and `completion_tokens`, for budgets."""

    @property
    def device(self) -> str:
        """Where a model on one device lies, as torch names it."""
        return device_among(self.devices)


Accept = Callable[[list[Completion]], None]
"""Takes completions that are final and makes them durable, as one group. Called from one thread."""


class Completer(Protocol):
    """Writes completions for one model under one sampling. Built in a worker, once a step, whether or not anything is
    missing: load nothing before `complete` is called."""

    batched: ClassVar[bool]
    """True: `complete` is called once a batch, a pure function of all requests, and a batch is accepted whole.
    False: it is called once, with everything that is missing, and accepts rows as they come."""

    def __init__(self, source: Source) -> None: ...

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        """Accept one completion a request; `progress(tokens)` is called as tokens are written.

        Raises:
            CompletionError: nothing more can be had now; what was accepted stays.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Engine, version and determinism settings, as recorded beside the rows; known after the first completion."""
        ...


def completer_class(name: str) -> type[Completer]:
    """A completer by registered name or import path."""
    found: type[Completer] = load_object(COMPLETERS.get(name, name), f"completer {name!r}")
    return found


def batches_of(requests: list[Request], batch_size: int) -> list[list[Request]]:
    """Batches as a pure function of the request set: near lengths together, ties by key."""
    ordered = sorted(requests, key=lambda request: (len(request.question), request.key))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
