"""Texts that try to take over a terminal, a page, a log or a table, and a completer that answers and prints them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from mot_core.completers.base import Accept, Completion, Request
from tests.pico import Scripted

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07\x1b[31m",
    "\r\r10%\b\b\x00\x7f\x9b31m",
    "\u202ereversed\u2066\u200b\ufeff",
    "\ud800\udfff half",
    "\u2028line\u2029par\x85nel",
    "<script>fetch('http://127.0.0.1:9/x');document.title='owned'</script>",
    "<img src=http://127.0.0.1:9/i.png onerror=alert(1)><svg onload=alert(1)>",
    "</pre></details><iframe src=javascript:alert(1)></iframe>",
    "{{ 7*7 }}{% include '/etc/passwd' %}",
    '=HYPERLINK("http://h";"x")',
    "[red]markup[/red] [link=http://h]x[/link]",
    "| a |\n[x](javascript:alert(1)) ![i](http://127.0.0.1:9/i.png)",
)


class Hostile(Scripted):
    """Each answer in turn, as the boxed answer too."""

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        rows = []
        for request, text in zip(requests, itertools.cycle(HOSTILE), strict=False):
            print("the model says:", text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), flush=True)
            rows.append(Completion.of(request, f"<think>{text}</think>\\boxed{{{text}}}", 5, "stop"))
        accept(rows)
