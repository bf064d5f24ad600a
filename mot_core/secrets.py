"""Which environment variables hold secrets, and texts without them. Standard library only, and our errors: the workers'
parent imports it.

A secret is the value of a variable whose name says so, of one that a spec names as `api_key_env`, and what stands before
the @ of a URL. Invariant: what leaves a worker (its lines and errors), and what `mot` prints of an error, is `masked`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import re
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from mot_core.errors import described, raised

HIDDEN = "[hidden]"
SHORTEST = 6
"""A shorter value (a local server's `none`) is as likely a word of a message, and stays there."""
_NAME = re.compile(
    r"(?i)(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|AUTH_STRING|CONNECTION_STRING)(_|$)"
    r"|(KEY|TOKEN|SECRET|PASSWORD)$"
)
_USER_OF_URL = re.compile(r"(?<=://)[^/\s\"'`<>]*@")
PASSED = "MOT_NAMED_SECRETS"
"""The variable that tells a process which other variables a spec has named to the one that started it."""
_named: set[str] = set(os.environ.get(PASSED, "").split())


def is_secret(name: str) -> bool:
    """Whether a variable's name says that it holds a secret, or a spec has said so."""
    return name in _named or _NAME.search(name) is not None


def name_secret(name: str) -> None:
    """Take a variable for a secret's from now on, in this process."""
    _named.add(name)


def named_secrets() -> str:
    """What a process that is started has to find in PASSED, to know of every secret that is known here."""
    return " ".join(sorted(_named))


def names_in(document: Any) -> Iterator[str]:
    """The variables that a spec, or a part of one as JSON, names as `api_key_env`."""
    if isinstance(document, dict):
        if isinstance(document.get("api_key_env"), str):
            yield document["api_key_env"]
        for value in document.values():
            yield from names_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from names_in(value)


def masked(text: str) -> str:
    """A text without this process's secrets and their lines, as they are, quoted for a URL or JSON, or in base64; nor what
    stands before the @ of any URL."""
    pattern = _pattern(frozenset(_secrets()))
    text = pattern.sub(HIDDEN, text) if pattern is not None else text
    return _USER_OF_URL.sub("***@", text)


@contextlib.contextmanager
def without_secrets() -> Iterator[None]:
    """Raise an error whose message, or that of what led to it, holds a secret as one of ours that holds none."""
    try:
        yield
    except Exception as error:
        whole = "".join(traceback.format_exception(error))
        if masked(whole) == whole:
            raise
        told = described(error)
        raise raised({**told, "message": masked(told["message"])}) from None


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if is_secret(name):
            yield from _with_lines(value)
            yield from _of_json(value)
        if "://" in value and "@" in value:
            yield from _of_url(value)


def _with_lines(value: str) -> Iterator[str]:
    """A secret, and each line of it: what a worker prints is masked a line at a time."""
    yield value.strip()
    yield from map(str.strip, value.split("\n"))


def _of_json(text: str) -> Iterator[str]:
    """What a credential that is written as a JSON object holds under names of secrets."""
    if not text.lstrip().startswith("{"):
        return
    with contextlib.suppress(ValueError, RecursionError):
        waiting = [("", json.loads(text))]
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, dict):
                waiting += value.items()
            elif isinstance(value, list):
                waiting += [(name, one) for one in value]
            elif isinstance(value, str) and is_secret(name):
                yield from _with_lines(value)


def _of_url(url: str) -> Iterator[str]:
    """User and password, and the password alone, as they stand and decoded."""
    try:
        users = urlsplit(url).netloc.rpartition("@")[0]
    except ValueError:
        return
    for one in (users, users.partition(":")[2]):
        yield one
        yield unquote(one)


@functools.lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    forms = {form for secret in secrets if len(secret) >= SHORTEST for form in _forms(secret)}
    return re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))) if forms else None


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode("utf-8", "surrogateescape")  # a variable may hold any bytes
    yield from (secret, raw.decode(errors="replace"), json.dumps(secret)[1:-1])
    yield from (quote(raw), quote(raw, safe=""), quote_plus(raw))
    # Where it begins among three bytes decides its letters; those of its ends depend on neighbours.
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            letters = encode(b"\0" * before + raw).decode()
            whole = (len(raw) + before) * 8 // 6
            yield letters[(before * 8 + 5) // 6 : whole]
