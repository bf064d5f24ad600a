"""The completer `openai` against a real server on this machine: every way in which an endpoint answers, or does not."""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mot_core.completers import concurrency, openai_completer
from mot_core.completers.base import Completion, Request, Source, completer_class
from mot_core.completers.concurrency import AdaptiveLimit
from mot_core.completers.endpoint_replies import NO_USAGE, Secret, server_message
from mot_core.completers.openai_completer import OpenAICompleter
from mot_core.errors import CompletionError, SpecError
from mot_core.secrets import HIDDEN
from mot_core.spec import Endpoint as EndpointSpec
from mot_core.spec import Sampling
from tests.endpoint import Call, Endpoint, Reply, reply, status
from tests.processes import ROOT, wait_until

KEY = "sk-proj-AbCd1234efGH5678ijKL-tail9Z"
LONG = 60.0
"""Seconds that pass only if what is waited for never comes."""


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "BACKOFF_SECONDS", 0.002)


@pytest.fixture
def first_reply_taken(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set by the completer's own thread at its first reply, which it deals with before it reads another."""
    taken = threading.Event()

    class Watched(AdaptiveLimit):
        def release(self) -> None:
            super().release()
            taken.set()

    monkeypatch.setattr(openai_completer, "AdaptiveLimit", Watched)
    return taken


def wanted(num: int, **scope: Any) -> list[Request]:
    return [Request.of({"test": 1, **scope}, f"p{index}", f"question {index}", 0) for index in range(num)]


def source(
    url: str, *, system: str | None = None, spent: Any = None, template_kwargs: Any = None, **settings: Any
) -> Source:
    sampling = Sampling(**settings.pop("sampling", {"temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 50}))
    endpoint = EndpointSpec(
        base_url=url, **{"max_retries": 2, "max_concurrency": 4, "timeout_seconds": 2 * LONG, **settings}
    )
    return Source(
        "tiny", None, sampling, system=system, template_kwargs=template_kwargs or {}, spent=spent or {},
        settings=endpoint.model_dump(mode="json"),
    )  # fmt: skip


def ask(url: str, requests: list[Request], **settings: Any) -> list[Completion]:
    rows: list[Completion] = []
    OpenAICompleter(source(url, **settings)).complete(requests, rows.extend, lambda tokens: None)
    return sorted(rows, key=lambda row: int(row.problem_id[1:]))


def refuse(url: str, requests: list[Request], **settings: Any) -> tuple[str, list[Completion]]:
    """The message that the asking ends with, and the rows accepted before."""
    rows: list[Completion] = []
    with pytest.raises(CompletionError) as caught:
        OpenAICompleter(source(url, **settings)).complete(requests, rows.extend, lambda tokens: None)
    return str(caught.value), rows


def for_question(index: int, otherwise: Reply, then: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
    return lambda call: then(call) if call.question == f"question {index}" else otherwise


# What is asked


def test_a_request_says_what_the_spec_says() -> None:
    assert completer_class("openai") is OpenAICompleter
    requests, started = wanted(1), time.monotonic()
    with Endpoint() as endpoint:
        rows = ask(
            endpoint.url, requests, system="Think.", template_kwargs={"enable_thinking": True},
            extra_body={"reasoning_effort": "high"},
            sampling={"temperature": 0.6, "top_p": 0.9, "max_completion_tokens": 64, "top_k": 20, "min_p": 0.1},
        )  # fmt: skip
    messages = [{"role": "system", "content": "Think."}, {"role": "user", "content": "question 0"}]
    assert endpoint.seen == [
        {
            "model": "tiny", "messages": messages, "temperature": 0.6, "top_p": 0.9, "max_tokens": 64, "top_k": 20,
            "min_p": 0.1, "seed": requests[0].seed % 2**31, "chat_template_kwargs": {"enable_thinking": True},
            "reasoning_effort": "high",
        }
    ]  # fmt: skip
    (row,) = rows
    assert (row.key, row.seed, row.text, row.finish_reason, row.reason) == (
        requests[0].key, requests[0].seed, "4", "stop", ""
    )  # fmt: skip
    assert (row.num_tokens, row.prompt_tokens, row.attempts) == (3, 7, 1)
    assert json.loads(row.prompt) == messages
    assert 0.0 < row.seconds < time.monotonic() - started


def test_a_null_leaves_a_field_out_and_the_limit_then_has_its_newer_name() -> None:
    extra = {"temperature": None, "top_p": None, "seed": None, "max_tokens": None, "reasoning_effort": "low"}
    with Endpoint() as endpoint:
        ask(endpoint.url, wanted(1), extra_body=extra)
    assert endpoint.seen[0].keys() == {"model", "messages", "max_completion_tokens", "reasoning_effort"}
    assert endpoint.seen[0]["max_completion_tokens"] == 50


@pytest.mark.parametrize("extra", [{"temperature": 1.0}, {"model": None}, {"n": 2}, {"max_completion_tokens": 9}])
def test_what_the_spec_sets_elsewhere_is_not_for_extra_body(extra: dict[str, Any]) -> None:
    writer = OpenAICompleter(source("http://127.0.0.1:1/v1", extra_body=extra))
    with pytest.raises(SpecError, match=f"extra_body sets '{next(iter(extra))}', which belongs to"):
        writer.complete(wanted(1), lambda rows: None, lambda tokens: None)


def test_connections_are_kept_and_never_more_than_the_bound_are_used() -> None:
    together = threading.Barrier(5, timeout=LONG)

    def script(call: Call) -> Reply:
        if call.number <= 5:
            together.wait()
        return reply(seconds=0.01)

    with Endpoint(script) as endpoint:
        rows = ask(endpoint.url, wanted(60), max_concurrency=5)
    assert [row.finish_reason for row in rows] == ["stop"] * 60
    assert endpoint.most_in_flight == 5
    assert endpoint.connections == 5


def test_answers_are_accepted_one_by_one_as_they_come() -> None:
    seen: list[tuple[int, int]] = []
    told: list[int] = []
    with Endpoint(lambda call: reply(seconds=0.02)) as endpoint:
        OpenAICompleter(source(endpoint.url, max_concurrency=1)).complete(
            wanted(3), lambda rows: seen.append((len(rows), endpoint.answered)), told.append
        )
    assert seen == [(1, 1), (1, 2), (1, 3)]
    assert told == [3, 3, 3]


# What an answer is


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_joined_with_the_answer(name: str) -> None:
    message: Any = {name: "2+2\n"}
    with Endpoint(lambda call: reply("\n\nIt is 4.", **message)) as endpoint:
        assert ask(endpoint.url, wanted(1))[0].text == "<think>2+2</think>It is 4."


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (reply(None, reasoning_content="2+2 is", finish_reason="length"), "<think>2+2 is"),
        (reply("2+2", finish_reason="length"), "2+2"),
        (reply("<think>2+2</think>4", finish_reason="length"), "<think>2+2</think>4"),
        (reply(None, finish_reason="length"), ""),
    ],
)
def test_an_answer_cut_at_the_limit(answer: Reply, text: str) -> None:
    with Endpoint(lambda call: answer) as endpoint:
        (row,) = ask(endpoint.url, wanted(1))
    assert (row.text, row.finish_reason) == (text, "length")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply("", finish_reason="content_filter"), "finish_reason is 'content_filter': the endpoint's content filter"),
        (reply(None, finish_reason="tool_calls"), "finish_reason is 'tool_calls': the model called a tool"),
        (reply("4", finish_reason=None), "finish_reason is 'None': expected stop or length"),
        (reply([{"type": "text", "text": "4"}]), "the message's content is not text"),
        (Reply(200, b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}'), "holds no choices"),
    ],
)
def test_an_answer_of_no_use_is_a_failed_row_at_once_and_its_tokens_count(answer: Reply, reason: str) -> None:
    with Endpoint(lambda call: answer) as endpoint:
        (row,) = ask(endpoint.url, wanted(1))
    assert (row.finish_reason, row.text, row.attempts) == ("failed", "", 1)
    assert reason in row.reason
    assert (row.prompt_tokens, row.num_tokens) == (7, 3)
    assert len(endpoint.seen) == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 7}, {"prompt_tokens": 7, "completion_tokens": "3"}, "?"])
def test_an_answer_without_usage_says_so(usage: Any) -> None:
    with Endpoint(lambda call: reply(usage=usage)) as endpoint:
        (row,) = ask(endpoint.url, wanted(1))
    assert (row.text, row.finish_reason, row.num_tokens, row.reason) == ("4", "stop", 0, NO_USAGE)


def test_facts_say_who_answered_and_not_where() -> None:
    fingerprints = iter(["fp_2", "fp_1", "fp_2"])

    def script(call: Call) -> Reply:
        return Reply(200, reply().body.replace(b"fp_1", next(fingerprints).encode()))

    with Endpoint(script) as endpoint:
        writer = OpenAICompleter(source(endpoint.url))
        writer.complete(wanted(3), lambda rows: None, lambda tokens: None)
    facts = writer.facts()
    assert (facts["model"], facts["system_fingerprints"]) == ("tiny", ["fp_1", "fp_2"])
    assert "127.0.0.1" not in json.dumps(facts)


# What is asked again


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Reply(200, b"<html>busy</html>"), "the reply is not JSON but '<html>busy</html>'"),
        (Reply(200, b"<html>busy</html>", {"Content-Type": "text/html"}), "the reply is not JSON"),
        (Reply(200, b""), "the reply is empty"),
        (Reply(200, b"[1]"), "a JSON list"),
        (Reply(200, b"[" * 100_000), "the reply is not JSON"),
        (Reply(200, b'{"error": {"message": "upstream died", "code": 502}}'), "an error: upstream died"),
        (Reply(200, reply().body, cut=20), "peer closed connection"),
        (Reply(200, reply().body, cut=0), "peer closed connection"),
        (reply("", finish_reason="insufficient_system_resource"), "insufficient_system_resource"),
        (status(500, "out of memory"), "HTTP 500: out of memory"),
        (Reply(502, b"<html>Bad\n  Gateway</html>"), "HTTP 502: <html>Bad Gateway</html>"),
        (status(503), "HTTP 503"),
        (status(408), "HTTP 408"),
        (status(409), "HTTP 409"),
        (status(429, "slow down"), "HTTP 429: slow down"),
    ],
)
def test_a_reply_of_no_use_is_asked_again_then_is_a_failed_row(bad: Reply, reason: str) -> None:
    once = for_question(0, reply(), lambda call: bad if call.attempt == 1 else reply("later"))
    with Endpoint(once) as endpoint:
        rows = ask(endpoint.url, wanted(3))
    assert [(row.text, row.attempts) for row in rows] == [("later", 2), ("4", 1), ("4", 1)]

    with Endpoint(for_question(1, reply(seconds=0.01), lambda call: bad)) as endpoint:
        rows = ask(endpoint.url, wanted(3), max_concurrency=1)
    assert [row.finish_reason for row in rows] == ["stop", "failed", "stop"]
    assert reason in rows[1].reason
    assert rows[1].attempts == 3
    assert len(endpoint.seen) == 2 + 3


def test_a_reply_that_never_comes_is_asked_again_then_is_a_failed_row() -> None:
    def script(call: Call) -> Reply:
        hangs = call.question == "question 1" or (call.question == "question 0" and call.attempt == 1)
        return reply("later", seconds=10 * LONG if hangs else 0.0)

    with Endpoint(script) as endpoint:
        rows = ask(endpoint.url, wanted(3), timeout_seconds=0.8, max_retries=3)
    # On a busy machine an ordinary reply may be too late, and then is asked for again too.
    assert [row.text for row in rows] == ["later", "", "later"]
    assert rows[0].attempts >= 2
    assert (rows[1].finish_reason, rows[1].attempts) == ("failed", 4)
    assert "no answer within 0.8 s" in rows[1].reason
    assert len(endpoint.seen) == sum(row.attempts for row in rows)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_prompt_is_a_failed_row_and_the_others_go_on(code: int) -> None:
    message = "This model's maximum context length is 64 tokens. " + "x" * 1000
    with Endpoint(for_question(1, reply(), lambda call: status(code, message))) as endpoint:
        rows = ask(endpoint.url, wanted(3))
    assert [row.finish_reason for row in rows] == ["stop", "failed", "stop"]
    assert rows[1].reason.startswith(f"HTTP {code}: This model's maximum context length is 64 tokens.")
    assert len(rows[1].reason) < 350
    assert len(endpoint.seen) == 3


def test_a_question_without_utf8_is_a_failed_row() -> None:
    requests = [Request.of({}, "p0", "half \ud800", 0), Request.of({}, "p1", "whole", 0)]
    with Endpoint() as endpoint:
        rows = ask(endpoint.url, requests)
    assert [row.finish_reason for row in rows] == ["failed", "stop"]


def test_every_request_is_answered_once_whatever_fails_between() -> None:
    chance, lock = random.Random(11), threading.Lock()

    def script(call: Call) -> Reply:
        with lock:
            drawn = chance.random()
        return status(429) if drawn < 0.15 else status(500) if drawn < 0.3 else reply(call.question)

    with Endpoint(script) as endpoint:
        rows = ask(endpoint.url, wanted(200), max_concurrency=16, max_retries=30)
    assert [row.text for row in rows] == [f"question {index}" for index in range(200)]
    assert set(endpoint.served.values()) == {1} and len(endpoint.served) == 200
    assert endpoint.answered == 200
    assert len(endpoint.seen) == sum(row.attempts for row in rows) > 200
    assert endpoint.most_in_flight <= 16


# Throttling


@pytest.mark.parametrize("header", ["seconds", "milliseconds", "date"])
def test_nothing_is_sent_before_retry_after_ends(
    monkeypatch: pytest.MonkeyPatch, first_reply_taken: threading.Event, header: str
) -> None:
    # The server's clock, which a date is read against, stands still, and far from this machine's.
    monkeypatch.setattr(
        BaseHTTPRequestHandler, "date_time_string", lambda self, timestamp=None: formatdate(10**6, usegmt=True)
    )
    seconds = 1.0 if header == "date" else 0.3
    named: dict[str, Any] = {
        "seconds": {"retry_after": "0.3"},
        "milliseconds": {"retry_after_ms": "300", "retry_after": "60"},
        "date": {"retry_after": formatdate(10**6 + 1, usegmt=True)},
    }[header]
    ends: list[float] = []

    def script(call: Call) -> Reply:
        if call.number == 4:
            ends.append(time.monotonic() + seconds)
            return status(429, **named)
        # The three that are on their way are answered meanwhile.
        assert first_reply_taken.wait(LONG)
        return reply()

    with Endpoint(script) as endpoint:
        # No retry is allowed: a wait that the endpoint asked for takes nothing of them.
        rows = ask(endpoint.url, wanted(30), max_retries=0)
    assert [row.finish_reason for row in rows] == ["stop"] * 30
    assert sorted(row.attempts for row in rows)[-2:] == [1, 2]
    assert len(endpoint.arrivals) == 30 + 1
    assert endpoint.arrivals[4] >= ends[0]


def test_waits_that_never_end_count_as_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_completer, "MOST_HOLDS", 3)
    script = for_question(0, reply(), lambda call: status(429, "full", retry_after_ms="5"))
    with Endpoint(script) as endpoint:
        rows = ask(endpoint.url, wanted(2), max_retries=2)
    assert [(row.finish_reason, row.attempts) for row in rows] == [("failed", 3 + 2 + 1), ("stop", 1)]


def test_a_wait_too_long_ends_the_asking() -> None:
    with Endpoint(lambda call: status(429, "quota", retry_after="3600")) as endpoint:
        message, rows = refuse(endpoint.url, wanted(20))
    assert "asks to wait 3,600 s (HTTP 429: quota), more than 900" in message
    assert rows == [] and len(endpoint.seen) <= 4


def test_the_number_in_flight_falls_under_throttling_and_rises_after() -> None:
    flying: dict[int, int] = {}
    together = threading.Barrier(16, timeout=LONG)

    def script(call: Call) -> Reply:
        flying[call.number] = endpoint.in_flight
        # Two full rounds are answered before the first refusal, and a full round is the last.
        if call.number <= 48 or call.number > 284:
            together.wait()
        # Rounds of at most 16, 8, 4 and 2 requests: after 40 refusals the limit is 1.
        if 32 < call.number <= 72:
            return status(429, retry_after_ms="20")
        return reply(seconds=0.04 if call.number <= 88 else 0.0)

    with Endpoint(script) as endpoint:
        rows = ask(endpoint.url, wanted(260), max_concurrency=16)
    assert [row.finish_reason for row in rows] == ["stop"] * 260
    assert len(flying) == 300 and endpoint.most_in_flight == 16
    assert flying[73] == 1
    assert max(flying[number] for number in range(73, 84)) <= 4
    assert max(flying[number] for number in range(285, 301)) == 16


# What ends the asking


def test_an_endpoint_that_is_down() -> None:
    with socket.socket() as bound:  # bound and not listening: the kernel refuses
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        message, rows = refuse(url, wanted(50))
    assert rows == []
    assert message.startswith(
        f"model 'tiny' at {url}: did not answer (Connection refused); start it, or set endpoint.base_url"
    )
    assert "; 50 of 50 requests are unanswered; what was answered stays" in message


def test_an_endpoint_that_only_fails_is_down_too() -> None:
    with Endpoint(lambda call: status(500, "CUDA error")) as endpoint:
        message, rows = refuse(endpoint.url, wanted(100))
        assert len(endpoint.seen) <= (3 + 4 + 4) * 3
        few, few_rows = refuse(endpoint.url, wanted(1))
    assert "did not answer (HTTP 500: CUDA error)" in message and rows == []
    assert "did not answer (HTTP 500: CUDA error)" in few and few_rows == []


def test_an_endpoint_that_dies_between_ends_the_asking_and_keeps_what_it_answered() -> None:
    together = threading.Barrier(4, timeout=LONG)

    def script(call: Call) -> Reply:
        if call.number <= 10:
            return reply()
        if call.number <= 14:  # all that can be in flight: every answer has come
            together.wait()
        return status(502)

    with Endpoint(script) as endpoint:
        message, rows = refuse(endpoint.url, wanted(100))
    assert [row.finish_reason for row in rows] == ["stop"] * 10
    assert "did not answer (HTTP 502)" in message and "90 of 100 requests are unanswered" in message


def test_a_model_that_is_not_served() -> None:
    script = lambda call: status(404, "The model `tiny` does not exist.")  # noqa: E731
    with Endpoint(script, models=("big", "small")) as endpoint:
        message, rows = refuse(endpoint.url, wanted(30))
    assert "does not serve it (HTTP 404: The model `tiny` does not exist.); it serves big, small: name one" in message
    assert rows == [] and len(endpoint.seen) <= 4
    with Endpoint(script) as endpoint:
        message, _ = refuse(f"{endpoint.url}/v2", wanted(1))
    assert "does endpoint.base_url end with /v1?" in message


def test_a_redirect_is_not_followed() -> None:
    with Endpoint() as other, Endpoint(lambda call: status(308, location=other.url)) as endpoint:
        message, _ = refuse(endpoint.url, wanted(5))
    assert "will not answer (HTTP 308)" in message and other.seen == []


@pytest.mark.parametrize(("code", "error_code"), [(402, ""), (429, "insufficient_quota")])
def test_an_account_without_credit(code: int, error_code: str) -> None:
    with Endpoint(lambda call: status(code, "no credit", error_code=error_code)) as endpoint:
        message, rows = refuse(endpoint.url, wanted(30))
    assert f"will not answer (HTTP {code}: no credit)" in message
    assert rows == [] and len(endpoint.seen) <= 4


def test_what_is_in_flight_when_the_asking_ends_is_accepted(first_reply_taken: threading.Event) -> None:
    def script(call: Call) -> Reply:
        if call.number == 4:
            return status(403, "expired")
        assert first_reply_taken.wait(LONG)
        return reply()

    with Endpoint(script) as endpoint:
        message, rows = refuse(endpoint.url, wanted(30))
    assert "refused access (HTTP 403: expired)" in message
    assert len(rows) == 3 == endpoint.answered
    assert len(endpoint.seen) == 4


class Enough(Exception):
    """Raised by an `accept` that has had enough."""


@pytest.mark.parametrize("kind", [Enough, KeyboardInterrupt, CompletionError])
def test_what_accept_raises_ends_everything(kind: type[BaseException]) -> None:
    def accept(rows: list[Completion]) -> None:
        raise kind("stop")

    together = threading.Barrier(4, timeout=LONG)

    def script(call: Call) -> Reply:
        if call.number <= 4:
            together.wait()
        return reply(seconds=0.0 if call.number == 1 else LONG)

    with Endpoint(script) as endpoint:
        with pytest.raises(kind, match="stop"):
            OpenAICompleter(source(endpoint.url)).complete(wanted(30), accept, lambda tokens: None)
        # Nothing more was asked, and no other answer waited for.
        assert len(endpoint.seen) == 4 and endpoint.in_flight == 3
        # The client is closed: the server's handlers end by themselves.


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Python's own answer to SIGINT, which is ignored in what a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_everything() -> None:
    def script(call: Call) -> Reply:
        if call.number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return reply(seconds=LONG)

    rows: list[Completion] = []
    with Endpoint(script) as endpoint:
        with pytest.raises(KeyboardInterrupt):
            OpenAICompleter(source(endpoint.url)).complete(wanted(30), rows.extend, lambda tokens: None)
        assert rows == [] and len(endpoint.seen) == endpoint.in_flight == 4


# Killed, and started again


@pytest.mark.parametrize("answered", [3, 17, 40])
def test_a_killed_process_asks_again_only_what_was_in_flight(
    tmp_path: Path, drive_environment: dict[str, str], answered: int
) -> None:
    num, most, killed = 60, 6, threading.Event()
    settings = [str(tmp_path / "store"), str(num), str(most)]

    def script(call: Call) -> Reply:
        if call.number > num - 2 * most:  # the process cannot end before it is killed
            killed.wait(300.0)
        return reply(f"answer to {call.question}", seconds=0.0 if killed.is_set() else 0.05)

    def command(url: str) -> list[str]:
        return [sys.executable, "-m", "tests.completers.drive_endpoint", url, *settings]

    with Endpoint(script) as first:
        with subprocess.Popen(
            command(first.url), cwd=ROOT, env=drive_environment, stdout=subprocess.DEVNULL
        ) as process:
            wait_until(lambda: first.answered >= answered or process.poll() is not None, 300.0, "answers")
            assert process.poll() is None
            process.kill()
        killed.set()
    # This server has closed: it has counted all that the process had sent. Its successor has another address.
    paid = first.answered
    (journal,) = (tmp_path / "store" / "requests").glob("*/rows.jsonl")
    kept = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert paid - most <= len(kept) <= paid < num

    with Endpoint(script) as second:

        def complete() -> dict[str, Any]:
            done = subprocess.run(
                command(second.url), cwd=ROOT, env=drive_environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
            counts: dict[str, Any] = json.loads(done.stdout)
            return counts

        counts = complete()
        assert counts["num_asked"] == num - len(kept) and counts["num_failed"] == 0
        # Answers that were on their way at the kill are paid twice, nothing else.
        assert second.answered == num - len(kept)
        served = sorted((first.served + second.served).values())
        assert served == [1] * (num - paid + len(kept)) + [2] * (paid - len(kept))
        rows = [json.loads(line) for line in Path(counts["rows"]).read_text().splitlines()]
        assert [row["text"] for row in rows] == [f"answer to question {index}" for index in range(num)]

        complete()
        assert second.answered == num - len(kept)


# The budget


def test_a_budget_of_tokens_stops_cleanly_and_goes_on_when_raised() -> None:
    # A request may take 50 tokens and 256 for the template and the bytes of its messages: about 350 of them.
    with Endpoint(lambda call: reply(usage=(40, 60), seconds=0.005)) as endpoint:
        requests = wanted(20)
        message, rows = refuse(endpoint.url, requests, max_total_tokens=1200)
        assert [row.finish_reason for row in rows] == ["stop"] * 9
        assert endpoint.answered == len(endpoint.seen) == 9
        assert "900 of max_total_tokens 1,200 are spent and the next request may take 35" in message
        assert "raise endpoint.max_total_tokens; 11 of 20 requests are unanswered; what was answered stays" in message

        answered = {row.key for row in rows}
        spent = {"prompt_tokens": 40.0 * 9, "completion_tokens": 60.0 * 9}
        rest = [request for request in requests if request.key not in answered]
        again, none = refuse(endpoint.url, rest, max_total_tokens=1200, spent=spent)
        assert none == [] and "900 of max_total_tokens 1,200 are spent" in again and len(endpoint.seen) == 9
        more = ask(endpoint.url, rest, max_total_tokens=2500, spent=spent)
    assert len(more) == 11 and endpoint.answered == 20
    assert set(endpoint.served.values()) == {1}


def test_a_budget_of_money() -> None:
    prices: dict[str, Any] = {"price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 10.0}
    with Endpoint(lambda call: reply(usage=(100, 50))) as endpoint:
        requests = wanted(20)
        rows: list[Completion] = []
        writer = OpenAICompleter(source(endpoint.url, max_cost=0.003, **prices))
        with pytest.raises(CompletionError, match="0.0024 of max_cost 0.003 are spent and the next request may take"):
            writer.complete(requests, rows.extend, lambda tokens: None)
    # 600 millionths each; the next may take 304 × 1 + 50 × 10 = 804 of them.
    assert len(rows) == 4 == len(endpoint.seen)
    spent = writer.budget.spent
    assert (spent.prompt, spent.completion) == (400, 200)
    assert writer.budget.cost(spent) == pytest.approx(0.0024)


def test_a_budget_needs_usage() -> None:
    together = threading.Barrier(4, timeout=LONG)

    def script(call: Call) -> Reply:
        if call.number <= 4:
            together.wait()
        return reply(usage=None)

    with Endpoint(script) as endpoint:
        message, rows = refuse(endpoint.url, wanted(50), max_total_tokens=10**6)
    assert "no budget can be kept: leave endpoint.max_total_tokens and max_cost out" in message
    assert len(rows) == len(endpoint.seen) == 4


# The key


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_key_that_is_missing(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("R1_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("R1_KEY", value)
    with Endpoint() as endpoint:
        message, _ = refuse(endpoint.url, wanted(1), api_key_env="R1_KEY")
    assert message.startswith("the environment variable R1_KEY holds no key")
    assert endpoint.seen == []


def test_a_key_that_no_header_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1_KEY", "top secret\nX-Injected: 1")
    message, _ = refuse("http://127.0.0.1:1/v1", wanted(1), api_key_env="R1_KEY")
    assert "R1_KEY holds no usable key" in message and "secret" not in message


@pytest.mark.parametrize("code", [401, 403, 400, 500])
def test_the_key_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("R1_KEY", f"{KEY}\n")
    echoes = [
        f"Incorrect API key provided: {KEY[:8]}******************{KEY[-4:]}. You can find yours online.",
        f"Incorrect API key provided: {KEY}.", f"bad key '{KEY[:14]}...'", f"key ending in {KEY[-4:]} is unknown",
        f"invalid header Authorization: Bearer {KEY}",
    ]  # fmt: skip
    for echo in echoes:
        refusal = status(code, echo)
        script = for_question(
            0, reply(f"Your key is {KEY}, I guess."), functools.partial(lambda refusal, call: refusal, refusal)
        )
        rows: list[Completion] = []
        with Endpoint(script) as endpoint:
            writer = OpenAICompleter(source(endpoint.url, api_key_env="R1_KEY", max_retries=0, max_concurrency=1))
            try:
                writer.complete(list(reversed(wanted(3))), rows.extend, lambda tokens: None)
                message = ""
            except CompletionError as error:
                message = str(error)
                assert "refused access (HTTP" in message and "check the key in R1_KEY" in message
            assert (message != "") == (code in (401, 403))
        told = "\n".join(
            [message, *(json.dumps(row.to_json()) for row in rows), json.dumps(writer.facts()), caplog.text]
        )
        told += "".join(capfd.readouterr())
        assert HIDDEN in told and "I guess." in told
        for length in (len(KEY), 6, 5):
            assert not [KEY[at : at + length] for at in range(len(KEY) - length + 1) if KEY[at : at + length] in told]


def test_the_endpoint_gets_the_key_and_without_one_a_placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str] = []

    def script(call: Call) -> Reply:
        tokens.append(call.authorization)
        return reply()

    monkeypatch.setenv("R1_KEY", KEY)
    with Endpoint(script) as endpoint:
        ask(endpoint.url, wanted(1), api_key_env="R1_KEY")
        ask(endpoint.url, wanted(1))
    assert tokens == [f"Bearer {KEY}", "Bearer none"]


def test_the_package_reads_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str] = []

    def script(call: Call) -> Reply:
        tokens.append(call.authorization)
        return reply()

    with Endpoint() as elsewhere, Endpoint(script) as endpoint:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
        monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer stolen")
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")  # nothing listens there
        assert len(ask(endpoint.url, wanted(1))) == 1
        assert len(ask(endpoint.url, wanted(1), api_key_env="OPENAI_API_KEY")) == 1
    assert elsewhere.seen == [] and tokens == ["Bearer none", f"Bearer {KEY}"]


def test_other_words_stay_readable() -> None:
    message = (
        "max_tokens=300 is too large: 'tiny' supports 128 (see https://example.org/api-docs#limits); key_value_cache"
    )
    assert Secret(KEY).clear(message) == message
    assert Secret("k").clear(f"{message} k") == f"{message} {HIDDEN}"
    assert Secret(None).clear("sk-live0123456789") == HIDDEN
    assert Secret("EMPTY").clear_answer("The set is EMPTY.") == "The set is EMPTY."
    assert server_message({"detail": [{"msg": "bad"}]}) == '[{"msg": "bad"}]'
    assert server_message({"error": "no"}) == server_message("no") == "no"
