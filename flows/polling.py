"""Something looked at every few seconds while other work goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def every(seconds: float, look: Callable[[], None], name: str) -> Iterator[None]:
    """Call `look` every few seconds, from a thread of its own, until the block ends. It must not raise."""
    over = threading.Event()

    def poll() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=poll, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
