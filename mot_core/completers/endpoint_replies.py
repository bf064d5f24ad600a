"""What an endpoint's replies mean: an answer, or a failure and what follows from it.

Invariant: a reply is untrusted. Whatever its body holds, it becomes an `Answer` or a `Failure`, and no text in either
holds the key or a part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mot_core.completers.concurrency import retry_after_seconds
from mot_core.reasoning import canonical_text, from_parts
from mot_core.secrets import HIDDEN

MESSAGE_CHARACTERS = 300
NO_USAGE = "the endpoint reported no usage: its tokens are not known"

THROTTLING = frozenset({429, 503, 529})
RETRIED = frozenset({408, 409, *THROTTLING})
UNRETRIED_FINISHES = {
    "content_filter": "the endpoint's content filter withheld the answer",
    "tool_calls": "the model called a tool instead of answering",
}
# DeepSeek's word for overload; vLLM's and proxies' for a request that they dropped.
RETRIED_FINISHES = frozenset({"insufficient_system_resource", "abort", "error"})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"})
_WORD = re.compile(r"[^\s\"'`,;:()<>{}\[\]=&]+")
_SECRET = re.compile(r"\*\*|^(?:sk|pk|key|api|gsk|xai|nvapi|hf)[-_](?=\S*\d)[\w.*…-]{6,}$", re.IGNORECASE)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+\S+")
FRAGMENT = 6
"""Characters in a row that a word may not share with the key. Masked keys keep 3 to 8 at either end."""
SHORTEST_SECRET = 16
"""A key shorter than this (`EMPTY`, a local server's `token-abc123`) may be a word of an answer, and stays there."""


@dataclass(frozen=True)
class Answer:
    """A completion, as an endpoint gave it."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reason: str = ""
    model: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Failure:
    """A reply that holds no completion, or no reply at all."""

    reason: str
    then: Literal["retry", "record", "stop"]
    """Ask again; leave a failed row and go on; end the asking."""
    status: int | None = None
    """The HTTP status; None where there was no reply."""
    hold_seconds: float | None = None
    """How long the endpoint asks to be left alone."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Charged although nothing of use came."""

    @property
    def throttles(self) -> bool:
        return self.status in THROTTLING


class Secret:
    """The key, and how texts are cleared of it: it has no text of its own."""

    def __init__(self, key: str | None) -> None:
        self._key = key
        fragments = range(len(key) - FRAGMENT + 1) if key is not None else ()
        self._fragments = frozenset(key[start : start + FRAGMENT] for start in fragments) if key is not None else ()

    def reveal(self) -> str:
        # The openai package wants some key; servers without one ignore it.
        return self._key if self._key is not None else "none"

    def clear(self, text: str) -> str:
        """A message without the key, without words that share a part with it or look like one; short, on one line."""
        whole = text.replace(self._key, HIDDEN) if self._key is not None and len(self._key) >= FRAGMENT else text
        whole = " ".join(_BEARER.sub(rf"\1 {HIDDEN}", whole).split())
        cleared = _WORD.sub(lambda word: HIDDEN if self._tells(word.group()) else word.group(), whole)
        cleared = cleared.encode("utf-8", "replace").decode()
        return cleared if len(cleared) <= MESSAGE_CHARACTERS else f"{cleared[:MESSAGE_CHARACTERS]}…"

    def clear_answer(self, text: str) -> str:
        """A model's text without the key itself; nothing else is touched."""
        return text.replace(self._key, HIDDEN) if self._key is not None and len(self._key) >= SHORTEST_SECRET else text

    def _tells(self, word: str) -> bool:
        if _SECRET.search(word) is not None:
            return True
        if self._key is None:
            return False
        bare = word.strip(".…-*")
        is_end = bare == self._key or (len(bare) >= 4 and (self._key.startswith(bare) or self._key.endswith(bare)))
        return is_end or any(word[at : at + FRAGMENT] in self._fragments for at in range(len(word) - FRAGMENT + 1))


def read_reply(content: bytes, secret: Secret) -> Answer | Failure:
    """The meaning of a body that came with HTTP 200."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        start = secret.clear(content[:200].decode("utf-8", "replace"))
        return Failure(f"the reply is not JSON but {start!r}" if start else "the reply is empty", "retry", 200)
    if not isinstance(body, dict):
        return Failure(f"the reply is a JSON {type(body).__name__}, expected an object", "retry", 200)
    choices = body.get("choices")
    if body.get("error") and not choices:  # proxies wrap a failure of what is behind them in a 200
        return Failure(f"the reply holds an error: {secret.clear(server_message(body))}", "retry", 200)
    prompt_tokens, completion_tokens, unknown = _usage(body)

    def failed(reason: str, then: Literal["retry", "record"] = "record") -> Failure:
        # A reply that will be asked for again is charged too, if it says what it cost.
        return Failure(reason, then, 200, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return failed("the reply holds no choices")
    finish, message = choices[0].get("finish_reason"), choices[0].get("message")
    if finish != "stop" and finish != "length":
        if str(finish) in RETRIED_FINISHES:
            return failed(f"the endpoint gave up (finish_reason {finish!r})", "retry")
        given = UNRETRIED_FINISHES.get(str(finish), "expected stop or length")
        return failed(f"finish_reason is {secret.clear(str(finish))!r}: {given}")
    text = _text(message)
    if text is None:
        return failed("the message's content is not text")
    return Answer(
        secret.clear_answer(text), finish, prompt_tokens, completion_tokens, NO_USAGE if unknown else "",
        secret.clear(str(body.get("model") or "")), secret.clear(str(body.get("system_fingerprint") or "")),
    )  # fmt: skip


def status_failure(status: int, body: object, headers: Mapping[str, str], secret: Secret) -> Failure:
    """The meaning of any other status."""
    message = secret.clear(server_message(body))
    reason = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    code = str(body.get("code")) if isinstance(body, dict) else ""
    if status in (401, 402, 403, 404, 405) or status < 400 or code in _NO_CREDIT:
        return Failure(reason, "stop", status)
    if status in RETRIED or status >= 500:
        return Failure(reason, "retry", status, retry_after_seconds(headers))
    return Failure(reason, "record", status)


def server_message(body: object) -> str:
    """What a server says in an error: in OpenAI's form, FastAPI's, or as it stands."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return body if isinstance(body, str) else json.dumps(body) if body else ""


def _usage(body: Mapping[str, Any]) -> tuple[int, int, bool]:
    """`(prompt tokens, completion tokens, whether either is unknown)`."""
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    known = [count if type(count) is int and 0 <= count < 2**53 else None for count in counts]
    return known[0] or 0, known[1] or 0, None in known


def _text(message: object) -> str | None:
    """The answer in canonical form; None if it is no text. Servers name the reasoning in two ways (vLLM: in turn)."""
    if not isinstance(message, dict):
        return None
    reasoning, content = message.get("reasoning_content") or message.get("reasoning"), message.get("content")
    if not isinstance(reasoning, str | None) or not isinstance(content, str | None):
        return None
    return canonical_text(from_parts(reasoning, content)) if reasoning else content or ""
