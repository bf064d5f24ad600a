"""What a step takes of the machine while it computes: processors, memory, GPUs, and how fast it gets on.

A thread of the step's process reads the kernel's own counters and keeps a few numbers; when the step has computed they
are written to `STORE/logs/<identity>.usage.jsonl`, beside its log. Invariants: no published file holds any of it, so no
hash depends on it; a step never fails, waits or differs because of it; the file has at most `MAX_ROWS` rows, since a
long step is looked at less often.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mot_core.files import read_jsonl

FIRST_INTERVAL = 1.0
"""Seconds between two looks; doubled each time that the rows are thinned out."""
SHORTEST = 0.2
"""Seconds that a row must stand for: the kernel counts processor time in hundredths."""
MAX_ROWS = 120
_ALWAYS = {"time", "cpu_percent", "memory_bytes"}
_PROGRESS = ("done", "unit", "tokens_per_second")
Row = dict[str, Any]
log = logging.getLogger("mot.usage")


@contextlib.contextmanager
def watched(path: Path, devices: Sequence[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Watch this process and its children inside the block, and write what was seen. What is yielded is told the step's
    events, of which progress is kept beside the numbers."""
    watch = _Watch(devices)
    watch.start()
    try:
        yield watch.note
    finally:
        watch.finish(path)


def read_usage(path: Path) -> list[Row]:
    """A step's rows, in time; none of a step that was not watched or whose file is damaged."""
    try:
        rows = read_jsonl(path)
    except (OSError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and row.keys() >= _ALWAYS for row in rows) else []


class _Watch:
    """One step's rows, and the thread that adds to them."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.rows: list[Row] = []
        self.interval = FIRST_INTERVAL
        self.progress: Row = {}
        self._devices = devices
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mot-usage", daemon=True)
        self._gpus: Callable[[], list[Row]] = list

    def start(self) -> None:
        try:
            # Here, not in the thread: a fork while it held the import lock would leave the child without it.
            self._gpus = _gpu_reader(self._devices) if self._devices else list
            self._before = (time.monotonic(), _tree()[0])
            self._thread.start()
        except Exception as error:
            log.warning("this step's use of the machine is not recorded: %s", error)

    def note(self, event: dict[str, Any]) -> None:
        if event.get("event") == "progress":
            self.progress = {name: event[name] for name in _PROGRESS if name in event}

    def finish(self, path: Path) -> None:
        """The last look, and the file. A full disk is the step's own trouble, not this file's."""
        if self._thread.ident is None:
            return
        self._done.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def _run(self) -> None:
        try:
            while True:
                over = self._done.wait(self.interval)
                if over and self.rows and time.monotonic() - self._before[0] < SHORTEST:
                    self.rows[-1].update(self.progress)  # too soon for a row of its own
                else:
                    self._look()
                if over:
                    return
        except Exception as error:
            log.warning("this step's use of the machine is recorded in part: %s", error)

    def _look(self) -> None:
        clock, (seconds, memory) = time.monotonic(), _tree()
        since, used = self._before
        self._before = (clock, seconds)
        share = (seconds - used) / max(1e-3, clock - since) / len(os.sched_getaffinity(0))
        percent = round(100 * min(1.0, max(0.0, share)), 1)
        row = {"time": time.time(), "cpu_percent": percent, "memory_bytes": memory, **self.progress}
        gpus = self._gpus()
        self.rows.append({**row, "gpus": gpus} if gpus else row)
        if len(self.rows) > MAX_ROWS:
            self.rows = self.rows[1::2]
            self.interval *= 2


# -- processes -----------------------------------------------------------------------------------------

_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def _tree() -> tuple[float, int]:
    """Processor seconds so far and resident bytes now, of this process and all below it. The seconds of a child that has
    ended are its parent's."""
    seconds, memory, waiting = 0.0, 0, [os.getpid()]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            memory += int((process / "statm").read_text().split()[1]) * _PAGE
            seconds += sum(map(int, fields[11:15])) / _TICKS  # its own, and its ended children's: user and system
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it ended while it was read
    return seconds, memory


# -- GPUs ----------------------------------------------------------------------------------------------


def _gpu_reader(devices: Sequence[str]) -> Callable[[], list[Row]]:
    """How to look at the job's GPUs, in the job's order: by the driver's library where its Python package is installed,
    else by torch, which knows memory only."""
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in devices
        ]
    except Exception as error:
        log.info("GPU utilisation is not recorded (%s); nvidia-ml-py brings it", error)
        return lambda: _torch_memory(len(devices))

    def look() -> list[Row]:
        return [
            {
                "utilization_percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
                **_memory(pynvml.nvmlDeviceGetMemoryInfo(handle).used, pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            }
            for handle in handles
        ]

    return look


def _torch_memory(count: int) -> list[Row]:
    """Nothing while torch has not touched CUDA: to ask would make it take memory of its own."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    found = [torch.cuda.mem_get_info(index) for index in range(count)]
    return [_memory(total - free, total) for free, total in found]


def _memory(used: int, total: int) -> Row:
    return {"memory_bytes": int(used), "memory_percent": round(100 * used / total, 1)}
