"""A completer that tells its whole environment: on its output, and in a chain of errors."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

from mot_core.completers.base import Accept, Request
from tests.pico import Scripted


class Telltale(Scripted):
    """What a careless library may do, at its worst."""

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        told = "; ".join(f"{name}={value}" for name, value in os.environ.items())
        print(told, flush=True)
        print(base64.b64encode(told.encode()).decode(), flush=True)
        try:
            raise KeyError(told)
        except KeyError as error:
            raise RuntimeError(f"\x1b[31mcannot log in with {told}") from error
