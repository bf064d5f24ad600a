"""vLLM's own process: one offline engine, asked over pipes. Run by path, with an interpreter that has vLLM.

    python -I -u vllm_worker.py REQUESTS RESULTS LIFELINE      (numbers of inherited descriptors)
    in   {"engine": {…}}   {"sampling": {…}}   {"id": n, "prompt": [token, …], "seed": s, "max_tokens": m}
    out  {"ready": {…}}    {"tokens": n, "rows": [[id, [token, …], finish reason, reason], …]}   {"error": text, "at": …}

The first process only watches: it forks the engine's, blocks on the lifeline, and ends every descendant when that speaks
or closes. It is their subreaper, so what vLLM starts in sessions of its own is found too.

Invariant: imports vLLM and the standard library only, never `mot_core`; when the watcher has ended, nothing that it or
the engine started is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LEAVE_SECONDS = 5.0
"""For the engine to leave by itself, and its executors in processes of their own with it."""
ORPHAN_SECONDS = 1.0
"""For what the engine started, above all multiprocessing's resource tracker, once the engine is gone."""
SHARED_MEMORY = re.compile(r"/dev/shm/(psm_|sem\.mp-|vllm)\S*")
"""Named by multiprocessing and by vLLM, which leaves 160 MiB a killed engine of several processes."""
TELL_SECONDS = 0.5
"""Between two messages that only count tokens."""
ROWS_SECONDS = 0.1
"""Between two messages with rows, while there is more to write."""


def main() -> None:
    requests, results, lifeline = (int(argument) for argument in sys.argv[1:4])
    for descriptor in (requests, results, lifeline):
        os.set_inheritable(descriptor, False)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    # vLLM leaves files and sockets in the temporary directory when it is killed; this one goes with it.
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="vllm-")
    watcher = os.getpid()
    engine = os.fork()
    if engine:
        os.close(requests)
        os.close(results)
        code = watch(engine, lifeline)
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
        os._exit(code)
    os.close(lifeline)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watcher:  # the watcher died before the kernel was asked
        os._exit(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run_engine(Inbox(requests), Outbox(results))


# --- the watcher -----------------------------------------------------------------------------------------------------


def watch(engine: int, lifeline: int) -> int:
    """Wait until something comes over the lifeline, or its end, or the engine ends; then end everything.

    Returns the engine's exit code, as a shell has it.
    """
    parent = os.getppid()
    ended = os.pidfd_open(engine)
    # A process forked by the parent may hold the lifeline open after it; the parent's death shows in our parent's id.
    while os.getppid() == parent and not select.select([lifeline, ended], [], [], 1.0)[0]:
        pass
    shared = shared_memory(descendants(os.getpid()))
    os.kill(engine, signal.SIGTERM)  # not reaped yet, so the id is still its own
    select.select([ended], [], [], LEAVE_SECONDS)
    os.kill(engine, signal.SIGKILL)
    _, status = os.waitpid(engine, 0)
    deadline = time.monotonic() + ORPHAN_SECONDS
    while reap() and time.monotonic() < deadline:
        time.sleep(0.01)
    while reap():
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for path in shared:
        path.unlink(missing_ok=True)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def reap() -> bool:
    """Whether there are descendants; those that have ended are taken off the process table."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """Every process below a pid."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for parent in level for child in children.get(parent, [])]
        found += level
    return found


def shared_memory(pids: list[int]) -> set[Path]:
    """The named shared memory that processes have mapped, and that outlives them."""
    found: set[Path] = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            found |= {Path(match.group()) for match in SHARED_MEMORY.finditer(maps)}
    return found


# --- the engine ------------------------------------------------------------------------------------------------------


class Inbox:
    """Commands, a JSON object a line."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.rest = b""
        os.set_blocking(descriptor, False)

    def take(self, wait: bool) -> list[dict[str, Any]] | None:
        """The commands that have come, waiting for the first if asked to; None when no more can come."""
        select.select([self.descriptor], [], [], None if wait else 0.0)
        while True:
            try:
                chunk = os.read(self.descriptor, 1 << 20)
            except BlockingIOError:
                break
            if not chunk:
                return None
            self.rest += chunk
        *lines, self.rest = self.rest.split(b"\n")
        return [json.loads(line) for line in lines]


class Gone(Exception):
    """Nobody reads the events any more."""


class Outbox:
    """Events, a JSON object a line."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def tell(self, event: dict[str, Any]) -> None:
        rest = memoryview(json.dumps(event).encode() + b"\n")
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except BrokenPipeError as error:
            raise Gone from error


def run_engine(inbox: Inbox, outbox: Outbox) -> None:
    """Load, serve, leave; what goes wrong is told and logged. Never returns."""
    stage, code = "import", 1
    engine: Any = None
    try:
        commands: list[dict[str, Any]] | None = []
        while commands == []:
            commands = inbox.take(wait=True)
        if commands:
            import vllm

            stage = "start"
            loaded = vllm.LLM(**commands[0]["engine"])
            engine = loaded.llm_engine
            with contextlib.suppress(Gone):  # as at the end of `serve`
                outbox.tell({"ready": facts_of(vllm, loaded)})
                stage = "run"
                serve(vllm, loaded, inbox, outbox, commands[1:])
        # The watcher hears of it too, and first notes the shared memory that only a living engine's map names.
        time.sleep(LEAVE_SECONDS)
        code = 0
    except SystemExit:  # the watcher's SIGTERM
        code = 0
    except BaseException as error:
        traceback.print_exc()
        with contextlib.suppress(Gone):
            outbox.tell({"error": f"{type(error).__name__}: {error}", "at": stage})
    try:
        # Executors in processes of their own share memory that outlives them; this process's own goes with it, and
        # vLLM's way to give it back first takes a second.
        if engine is not None and descendants(os.getpid()):
            engine.engine_core.shutdown()
    finally:
        # The interpreter's own way out can wait on vLLM's threads for ever.
        os._exit(code)


def serve(vllm: Any, loaded: Any, inbox: Inbox, outbox: Outbox, commands: list[dict[str, Any]] | None) -> None:
    """Ask what comes, step the engine, tell what has ended, until no more can come."""
    from vllm.sampling_params import RequestOutputKind

    engine = loaded.llm_engine
    written: dict[str, list[int]] = {}
    sampling: dict[str, Any] = {}
    tokens, told, told_rows = 0, time.monotonic(), 0.0
    rows: list[list[Any]] = []
    while commands is not None:
        for command in commands:
            if "sampling" in command:
                sampling = command["sampling"]
                continue
            try:
                prompt = loaded.renderer.render_cmpl([{"prompt_token_ids": command["prompt"]}])[0]
                params = vllm.SamplingParams(
                    **sampling, seed=command["seed"], max_tokens=command["max_tokens"], n=1, detokenize=False,
                    output_kind=RequestOutputKind.DELTA,
                )  # fmt: skip
                engine.add_request(str(command["id"]), prompt, params)
                written[str(command["id"])] = []
            except ValueError as error:
                rows.append([command["id"], [], "failed", f"vLLM refused it: {error}"])
        if written:
            try:
                outputs = engine.step()
            except Exception:
                outbox.tell({"tokens": tokens, "rows": rows})  # what has ended before a failure counts
                raise
            for output in outputs:
                tokens += len(output.outputs[0].token_ids)
                written[output.request_id] += output.outputs[0].token_ids
                if output.finished:
                    rows.append(row_of(output, written.pop(output.request_id)))
        now = time.monotonic()
        # Told together: whoever wakes for each row takes a core from the engine's threads, which wait for each other.
        due = now - told_rows > ROWS_SECONDS or not written
        if (rows and due) or (tokens and now - told > TELL_SECONDS):
            outbox.tell({"tokens": tokens, "rows": rows})
            told_rows = now if rows else told_rows
            tokens, rows, told = 0, [], now
        commands = inbox.take(wait=not written)


def row_of(output: Any, tokens: list[int]) -> list[Any]:
    """A finished request as it is told: id, tokens, finish reason, and why if it failed."""
    reason = output.outputs[0].finish_reason
    if reason in ("stop", "length"):
        return [int(output.request_id), tokens, reason, ""]
    why = getattr(output, "error", None)
    return [
        int(output.request_id),
        [],
        "failed",
        f"vLLM ended it with {reason!r}" + (f": {why.message}" if why else ""),
    ]


def facts_of(vllm: Any, loaded: Any) -> dict[str, Any]:
    """What vLLM made of its settings."""
    config = loaded.llm_engine.vllm_config
    return {
        "version": vllm.__version__, "torch": metadata.version("torch"),
        "dtype": str(loaded.model_config.dtype).removeprefix("torch."),
        "max_model_len": loaded.model_config.max_model_len, "attention_backend": attention_backend(loaded),
        "device": vllm.platforms.current_platform.get_device_name(), "enforce_eager": loaded.model_config.enforce_eager,
        "prefix_caching": config.cache_config.enable_prefix_caching, "batch_invariant": vllm.envs.VLLM_BATCH_INVARIANT,
    }  # fmt: skip


def attention_backend(loaded: Any) -> str:
    """The backend in use where the model lies in this process; else the one that was asked for, or "vLLM's choice"."""
    try:
        runner = loaded.llm_engine.engine_core.engine_core.model_executor.driver_worker.model_runner
        return str(runner.attn_groups[0][0].backend.get_name())
    except (AttributeError, IndexError):
        asked = loaded.llm_engine.vllm_config.attention_config.backend
        return asked.name if asked is not None else "vLLM's choice"


if __name__ == "__main__":
    main()
