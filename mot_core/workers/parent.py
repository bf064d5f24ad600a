"""The clean parent: loads torch once, then forks one worker a job. Run as `python -m mot_core.workers.parent`.

It reads commands from standard input and writes events to standard output, a JSON object a line:
    in   {"job": id, "steps": [...], "store": path, "settings": {...}, "logs": [...]}   {"kill": id}   {"halt": true}
    out  {"ready": pid}   {"job": id, "line": text}   {"job": id, "event": ...}   {"job": id, "exit": code}
End of input means that the flow process is gone: every worker is killed. The parent has one thread, so that
forking is safe; it never runs torch code itself. A log that cannot be written, on a full disk, ends nothing. What a worker
prints and raises passes here, without secrets and with every hidden character visible.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mot_core.errors import described
from mot_core.processes import die_with_parent
from mot_core.secrets import masked, name_secret, names_in
from mot_core.text import log_line, visible


def main() -> None:
    # Ctrl-C reaches the whole process group; the flow process decides what to end, by closing our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Inherited by workers until they say what it asks of them: see `HaltFlag`.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # What every worker would load; forked workers have it at once. One thread until a job says more.
    import accelerate  # noqa: F401
    import torch
    import transformers
    import transformers.models.auto.modeling_auto
    import transformers.models.qwen3.modeling_qwen3

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    Parent().serve()


class Parent:
    """The select loop over commands and the workers' pipes."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ, ("commands", ""))
        self.buffers: dict[int, bytes] = {}
        self.pids: dict[str, int] = {}
        self.open_pipes: dict[str, set[int]] = {}
        self.logs: dict[str, list[Any]] = {}
        self.halted = False

    def serve(self) -> None:
        self.tell({"ready": os.getpid()})
        while True:
            for key, _ in self.selector.select():
                channel, job = key.data
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    if channel == "commands":
                        self.end()
                    self.close_pipe(key.fd, job)
                    continue
                lines = (self.buffers.pop(key.fd, b"") + chunk).split(b"\n")
                self.buffers[key.fd] = lines.pop()
                for line in lines:
                    self.handle(channel, job, line)

    def handle(self, channel: str, job: str, line: bytes) -> None:
        if channel == "commands":
            command = json.loads(line)
            if "kill" in command:
                self.kill(command["kill"])
            elif "halt" in command:
                self.halt()
            else:
                self.start(command)
        elif channel == "events":
            self.tell({"job": job, **told(json.loads(line))})
        else:
            text = log_line(masked(line.decode(errors="replace")))
            for log in self.logs[job]:
                with contextlib.suppress(OSError):
                    log.write(text + "\n")
                    log.flush()
            self.tell({"job": job, "line": text})

    def start(self, command: dict[str, Any]) -> None:
        job = command["job"]
        for name in names_in(command["steps"]):
            name_secret(name)
        events_read, events_write = os.pipe()
        output_read, output_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(events_read)
            os.close(output_read)
            work(command, events_write, output_write, self.halted)
        os.close(events_write)
        os.close(output_write)
        self.pids[job] = pid
        self.open_pipes[job] = {events_read, output_read}
        # A job's steps share one process and so one output: each step's log has the whole of it.
        self.logs[job] = []
        for path in command["logs"]:
            with contextlib.suppress(OSError):
                self.logs[job].append(Path(path).open("a"))  # noqa: SIM115  (closed with the job)
        self.selector.register(events_read, selectors.EVENT_READ, ("events", job))
        self.selector.register(output_read, selectors.EVENT_READ, ("output", job))

    def close_pipe(self, descriptor: int, job: str) -> None:
        rest = self.buffers.pop(descriptor, b"")
        with contextlib.suppress(json.JSONDecodeError):  # half an event, of a worker that was killed while it wrote
            if rest:
                self.handle(self.selector.get_key(descriptor).data[0], job, rest)
        self.selector.unregister(descriptor)
        os.close(descriptor)
        self.open_pipes[job].discard(descriptor)
        if not self.open_pipes[job]:
            _, status = os.waitpid(self.pids.pop(job), 0)
            for log in self.logs.pop(job):
                with contextlib.suppress(OSError):
                    log.close()
            del self.open_pipes[job]
            self.tell({"job": job, "exit": os.waitstatus_to_exitcode(status)})

    def kill(self, job: str) -> None:
        if job in self.pids:
            os.kill(self.pids[job], signal.SIGKILL)

    def halt(self) -> None:
        """Have every worker leave after the step that it computes, and start no other."""
        self.halted = True
        for pid in self.pids.values():
            os.kill(pid, signal.SIGUSR1)

    def end(self) -> None:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def tell(self, message: dict[str, Any]) -> None:
        try:
            os.write(1, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            self.end()


def told(event: dict[str, Any]) -> dict[str, Any]:
    """A worker's event; an error's message without secrets and hidden characters, since it goes into states and logs."""
    if "error" not in event:
        return event
    message = visible(masked(event["error"]["message"]), keep_layout=True)
    return {**event, "error": {**event["error"], "message": message}}


def work(command: dict[str, Any], events: int, output: int, halted: bool) -> None:
    """The worker: run the job's steps in order, tell what happened, exit. Never returns."""
    die_with_parent()
    flag = HaltFlag(halted)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        run_job(command, events, flag)
        code = 0
    except BaseException as error:
        traceback.print_exc()
        os.write(events, json.dumps({"event": "error", "error": described(error)}).encode() + b"\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class HaltFlag:
    """Set by SIGUSR1. A signal that comes before this exists is lost, and its job runs to its end."""

    def __init__(self, is_set: bool) -> None:
        self.is_set = is_set
        signal.signal(signal.SIGUSR1, self._set)

    def _set(self, number: int, frame: object) -> None:
        self.is_set = True


def run_job(command: dict[str, Any], events: int, halted: HaltFlag) -> None:
    import torch

    from mot_core.artifacts import Store
    from mot_core.runner import ModelCache, RunSettings, run_shard, run_step
    from mot_core.steps import RemoteStep

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    settings = RunSettings(**{**command["settings"], "devices": bind(command["settings"]["devices"])})
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    torch.set_num_threads(settings.threads)
    store = Store(Path(command["store"]))
    models = ModelCache()
    log = logging.getLogger("mot.worker")

    def emit(event: dict[str, Any]) -> None:
        os.write(events, json.dumps({**event, "time": time.time()}).encode() + b"\n")

    try:
        for document in command["steps"]:
            if halted.is_set:
                log.info("asked to stop: the steps that are left were not started")
                break
            step = RemoteStep.from_json(document)
            emit({"event": "started", "identity": step.identity})
            log.info("%s: starting (%s)", step.label, step.identity)
            if command["shard"] is not None:
                run_shard(step, tuple(command["shard"]), store, settings, emit, models)
                continue
            before = processor_seconds()
            published = run_step(step, store, settings, emit, models)
            spent = f"published after {published.seconds:.1f} s, {processor_seconds() - before:.2f} s of CPU"
            how = "published already" if published.reused else spent
            log.info("%s: %s %s", step.label, how, published.counts)
            emit({"event": "published", "record": published.to_json()})
    finally:
        models.close()  # work() leaves by os._exit, which would orphan an engine in a process of its own


def processor_seconds() -> float:
    """What this process, and its children that have ended, have spent: unlike time on the clock, it hardly depends on
    what else the machine does."""
    return sum(os.times()[:4])


def bind(devices: list[str]) -> tuple[str, ...]:
    """Make these the only devices that this process and its children see, and return them; none where torch was built
    without CUDA. CUDA is first touched here, after the fork, and reads the variable then."""
    import torch

    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if devices and not torch.cuda.is_available():
        logging.getLogger("mot.worker").warning(
            "torch %s sees none of the devices %s: this job runs on the CPU", torch.__version__, ", ".join(devices)
        )
        return ()
    if devices:
        torch.cuda.set_device(0)
    return tuple(devices)


if __name__ == "__main__":
    main()
