"""One OpenAI-compatible server, spoken to through the openai package: what is sent, with which key, and what came back.

Invariant: nothing but the spec decides what is sent where. The package's own environment variables, retries and
redirects are off, and the key goes to the endpoint only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mot_core.completers.base import Source
from mot_core.completers.endpoint_replies import Answer, Failure, Secret, read_reply, status_failure
from mot_core.errors import CompletionError, SpecError
from mot_core.secrets import name_secret
from mot_core.spec import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SEED_MODULUS = 2**31
"""vLLM takes int64 seeds, others 32 bits, and a proxy written in JavaScript keeps 53."""
CONNECT_SECONDS = 15.0

LEFT_OUT_BY_NULL = {
    "temperature": "sampling.temperature", "top_p": "sampling.top_p", "seed": "generation.seed",
    "max_tokens": "sampling.max_completion_tokens",
}  # fmt: skip
SET_ELSEWHERE = {
    **LEFT_OUT_BY_NULL, "model": "the teacher's model", "messages": "the teacher's system and the problems",
    "n": "num_samples", "top_k": "sampling.top_k", "min_p": "sampling.min_p",
    "max_completion_tokens": "sampling.max_completion_tokens", "chat_template_kwargs": "the teacher's template_kwargs",
    "stream": "nothing: answers are read whole",
}  # fmt: skip


class EndpointClient:
    """Asks one model. Open it with `async with`."""

    def __init__(self, source: Source, endpoint: Endpoint, secret: Secret) -> None:
        self.model, self.endpoint, self.secret = source.locator, endpoint, secret
        self.fields = request_fields(source, endpoint)
        self.client = open_client(endpoint, secret)

    async def __aenter__(self) -> EndpointClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, messages: list[dict[str, str]], request_seed: int) -> Answer | Failure:
        """One attempt at one answer; raises nothing that a server or a network can cause."""
        import openai

        wanted: Any = self.client.chat.completions.with_raw_response
        seed = {} if "seed" in self.endpoint.extra_body else {"seed": request_seed % SEED_MODULUS}
        try:
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                reply = await wanted.create(
                    model=self.model, messages=messages, extra_body={**self.fields, **seed}
                )  # fmt: skip
            return read_reply(reply.http_response.content, self.secret)
        except openai.APIStatusError as error:
            return status_failure(error.status_code, error.body, error.response.headers, self.secret)
        except openai.APITimeoutError:
            return Failure(f"no connection within {_connect_seconds(self.endpoint):g} s", "retry")
        except openai.APIError as error:
            return Failure(self.secret.clear(_root(error)), "retry")
        except TimeoutError:
            return Failure(f"no answer within {self.endpoint.timeout_seconds:g} s", "retry")
        except UnicodeEncodeError:
            return Failure("the question holds half a surrogate pair, which has no UTF-8", "record")

    async def served_models(self) -> list[str]:
        """The models that the endpoint says it serves; none if it does not say."""
        import openai

        with contextlib.suppress(openai.OpenAIError, TimeoutError, ValueError, AttributeError, TypeError):
            async with asyncio.timeout(_connect_seconds(self.endpoint)):
                page = await self.client.models.list()
            return sorted(self.secret.clear(str(model.id)) for model in page.data)
        return []


def request_fields(source: Source, endpoint: Endpoint) -> dict[str, Any]:
    """The fields of every request but model, messages and seed.

    `max_tokens` is what every compatible server takes; a null in `extra_body` leaves a field out, and with
    `max_tokens: null` the limit goes under OpenAI's newer name, `max_completion_tokens`.
    """
    check_extra_body(endpoint)
    sampling = source.sampling
    extra = {name: value for name, value in endpoint.extra_body.items() if name not in LEFT_OUT_BY_NULL}
    fields: dict[str, Any] = {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_completion_tokens
    }  # fmt: skip
    fields = {name: value for name, value in fields.items() if name not in endpoint.extra_body}
    if "max_tokens" not in fields:
        fields["max_completion_tokens"] = sampling.max_completion_tokens
    fields |= {name: getattr(sampling, name) for name in ("top_k", "min_p") if getattr(sampling, name) is not None}
    if source.template_kwargs:
        fields["chat_template_kwargs"] = dict(source.template_kwargs)
    return {**fields, **extra}


def check_extra_body(endpoint: Endpoint) -> None:
    """
    Raises:
        SpecError: `extra_body` sets what the spec sets elsewhere.
    """
    for name, place in SET_ELSEWHERE.items():
        value = endpoint.extra_body.get(name, ...)
        if value is not ... and (value is not None or name not in LEFT_OUT_BY_NULL):
            raise SpecError(f"endpoint.extra_body sets {name!r}, which belongs to {place}; set it there")


def read_key(endpoint: Endpoint) -> Secret:
    """The key from the environment.

    Raises:
        CompletionError: the variable is not set, or holds what no header can.
    """
    variable = endpoint.api_key_env
    if variable is None:
        return Secret(None)
    name_secret(variable)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise CompletionError(
            f"the environment variable {variable} holds no key; set it to the endpoint's, or leave api_key_env out"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CompletionError(
            f"the environment variable {variable} holds no usable key: a key is ASCII in one line without spaces"
        )
    return Secret(key)


def open_client(endpoint: Endpoint, secret: Secret) -> AsyncOpenAI:
    """A client that knows nothing but the spec: no retries, redirects or settings of the package's own."""
    with _without_variables("OPENAI_"):  # it reads keys, an address, an organization, headers and a log level there
        import httpx2
        import openai

        return openai.AsyncOpenAI(
            api_key=secret.reveal(), base_url=endpoint.base_url, max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                # Proxies come from the environment, but nobody's proxy reaches this machine.
                trust_env=not _is_loopback(endpoint.base_url), follow_redirects=False,
                timeout=openai.Timeout(None, connect=_connect_seconds(endpoint)),  # of the whole: `ask`
                limits=httpx2.Limits(max_keepalive_connections=endpoint.max_concurrency),
            ),
        )  # fmt: skip


@contextlib.contextmanager
def _without_variables(prefix: str) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _connect_seconds(endpoint: Endpoint) -> float:
    return min(CONNECT_SECONDS, endpoint.timeout_seconds)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _root(error: BaseException) -> str:
    """What lies under a wrapped error, such as `Connection refused`."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    if (type(error) is OSError or isinstance(error, ConnectionError)) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
