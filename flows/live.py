"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere.

Called from the worker pool's reader thread and from task threads; nothing here may raise or wait.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mot_core.steps import Step
from mot_core.text import visible

PLAIN_SECONDS = 20.0
_UNITS = {"steps": "steps", "batches": "batches", "tensors": "tensors"}


class LiveView:
    """A total over all steps, and a line for each step that a worker computes now."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = 0
        self.done: set[str] = set()
        self.reused: set[str] = set()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.overall: TaskID | None = None
        self.lines: dict[str, TaskID] = {}
        self.last_plain = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> LiveView:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def announce(self, line: str, num_steps: int) -> None:
        """Say what is about to run, and how many steps it has."""
        self.total = num_steps
        self.overall = self.progress.add_task("all steps", total=num_steps, rate="")
        self._print(line)

    def watch(self, step: Step, event: dict[str, Any]) -> None:
        """One event of one step."""
        with self._lock:
            kind = event.get("event")
            if kind == "progress":
                self._advance(step, event)
            elif kind == "published":
                self._finish(step, reused=bool(event["record"]["reused"]))
            elif kind == "reused":
                self._finish(step, reused=True)

    def _advance(self, step: Step, event: dict[str, Any]) -> None:
        rate = f"{event['tokens_per_second']:,.0f} tokens/s" if event.get("tokens_per_second") else ""
        if "loss" in event:
            rate = f"{rate} loss {event['loss']:.3f}"
        if step.identity not in self.lines:
            self.lines[step.identity] = self.progress.add_task(visible(step.label), total=event["total"], rate=rate)
        self.progress.update(self.lines[step.identity], completed=event["done"], total=event["total"], rate=rate)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_plain > PLAIN_SECONDS:
            self.last_plain = now
            done = f"{event['done']:.0f}/{event['total']:.0f} {_UNITS.get(event['unit'], event['unit'])}"
            self._print(f"[{len(self.done)}/{self.total}] {step.label}: {done} {rate}")

    def _finish(self, step: Step, reused: bool) -> None:
        if step.identity in self.done:
            return
        self.done.add(step.identity)
        if step.identity in self.lines:
            self.progress.remove_task(self.lines.pop(step.identity))
        if self.overall is not None:
            self.progress.update(self.overall, completed=len(self.done))
        if reused:
            self.reused.add(step.identity)
        elif not self.console.is_terminal:
            self._print(f"[{len(self.done)}/{self.total}] {step.label}")

    def _print(self, line: str) -> None:
        self.console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


class SuccessiveView(LiveView):
    """The same for runs one after the other: each is announced, and begins at none of its steps."""

    def announce(self, line: str, num_steps: int) -> None:
        with self._lock:
            for shown in self.progress.task_ids:
                self.progress.remove_task(shown)
            self.done.clear()
            self.reused.clear()
            self.lines.clear()
        super().announce(line, num_steps)
