"""The protocol between a stage that wants completions and whoever writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mot_core.identity import derive_seed, fingerprint
from mot_core.spec import Sampling
from mot_core.steps import load_object

COMPLETERS: dict[str, str] = {"transformers": "mot_core.completers.transformers_completer:TransformersCompleter"}


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
    """One row of output. `finish_reason` is `stop`, `length` (cut at the limit) or `failed` (see `reason`)."""

    key: str
    problem_id: str
    sample_index: int
    seed: int
    text: str
    num_tokens: int
    finish_reason: str
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Completer(Protocol):
    """Writes completions for one model under one sampling. Built in a worker, once a step."""

    def __init__(
        self, locator: str, revision: str | None, sampling: Sampling, device: str, load: Callable[..., Any]
    ) -> None: ...

    def complete(self, requests: list[Request], progress: Callable[[int], None]) -> list[Completion]:
        """One completion a request, in order; `progress(tokens)` is called as tokens are written."""
        ...


def completer_class(name: str) -> type[Completer]:
    """A completer by registered name or import path."""
    found: type[Completer] = load_object(COMPLETERS.get(name, name), f"completer {name!r}")
    return found


def batches_of(requests: list[Request], batch_size: int) -> list[list[Request]]:
    """Batches as a pure function of the request set: near lengths together, ties by key."""
    ordered = sorted(requests, key=lambda request: (len(request.question), request.key))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
