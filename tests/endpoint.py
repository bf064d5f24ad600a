"""An OpenAI-compatible server on this machine, for tests: real sockets, and replies that a script decides.

with Endpoint(lambda call: reply("4") if call.attempt > 1 else status(500)) as endpoint:
    …ask endpoint.url…
    assert endpoint.answered == 1
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny"


@dataclass(frozen=True)
class Call:
    """One request for a completion. `number` and `attempt` (at this question and seed) count from 1."""

    number: int
    attempt: int
    question: str
    body: dict[str, Any]
    authorization: str


@dataclass(frozen=True)
class Reply:
    """What is sent, after some seconds. `cut`: the connection closes after so many bytes of the body."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cut: int | None = None


Script = Callable[[Call], Reply]


def reply(
    content: Any = "4", *, finish_reason: str | None = "stop", usage: Any = (7, 3), seconds: float = 0.0, **message: Any
) -> Reply:
    """A completion; `usage` is (prompt tokens, completion tokens), or what stands in its place."""
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if isinstance(usage, tuple) else usage
    document = {
        "id": "x", "object": "chat.completion", "created": 1, "model": MODEL, "system_fingerprint": "fp_1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
        ],
        **({"usage": counts} if counts is not None else {}),
    }  # fmt: skip
    return Reply(200, json.dumps(document).encode(), seconds=seconds)


def status(code: int, message: str = "", *, seconds: float = 0.0, error_code: str = "", **headers: str) -> Reply:
    """An error in OpenAI's form; headers with `_` for `-`."""
    body = json.dumps({"error": {"message": message, "code": error_code or None}}).encode() if message else b""
    return Reply(code, body, {name.replace("_", "-"): value for name, value in headers.items()}, seconds)


class Endpoint:
    """The server, from `with` to its end. Counts are kept for every completion asked."""

    def __init__(self, script: Script = lambda call: reply(), models: tuple[str, ...] = (MODEL,)) -> None:
        self.script, self.models = script, models
        self.answered = self.in_flight = self.most_in_flight = self.connections = 0
        self.seen: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.statuses: list[int] = []
        self.attempts: Counter[tuple[str, Any]] = Counter()
        self.served: Counter[tuple[str, Any]] = Counter()
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self) -> Endpoint:
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"endpoint": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @contextlib.contextmanager
    def arrive(self, body: dict[str, Any], authorization: str) -> Iterator[Call]:
        question = body["messages"][-1]["content"]
        with self.lock:
            self.seen.append(body)
            self.arrivals.append(time.monotonic())
            self.attempts[question, body.get("seed")] += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            call = Call(len(self.seen), self.attempts[question, body.get("seed")], question, body, authorization)
        try:
            yield call
        finally:
            with self.lock:
                self.in_flight -= 1

    def count(self, call: Call, answer: Reply) -> None:
        with self.lock:
            self.statuses.append(answer.status)
            if answer.status == 200 and answer.cut is None:
                self.answered += 1
                self.served[call.question, call.body.get("seed")] += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.endpoint.lock:
            self.endpoint.connections += 1

    def do_GET(self) -> None:
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.endpoint.models]}
        self.respond(Reply(200, json.dumps(listed).encode()) if self.path == "/v1/models" else status(404))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.respond(status(404))
        with self.endpoint.arrive(body, self.headers.get("Authorization", "")) as call:
            answer = self.endpoint.script(call)
            if answer.seconds:
                self.endpoint.closing.wait(answer.seconds)
            # Before it is written: a client that has its answer may be killed the moment after.
            self.endpoint.count(call, answer)
        return self.respond(answer)

    def respond(self, answer: Reply) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at the counts."""
