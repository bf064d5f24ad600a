"""A vLLM that thinks of nothing: the real worker script runs on it, without an engine and without seconds of imports.

A request with seed s writes `s % 5 + 1` tokens, the character token 10 + s % 50 each time, then its stop token. What it
does besides is set by environment variables, all named VLLM_FAKE_…, so that they pass into an engine's process.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = "0.0.fake"
envs = SimpleNamespace(VLLM_BATCH_INVARIANT=False)
platforms = SimpleNamespace(current_platform=SimpleNamespace(get_device_name=lambda: "fake"))


def setting(name: str) -> int:
    return int(os.environ.get(f"VLLM_FAKE_{name}", "0"))


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop_token_ids: list[int]
    seed: int
    max_tokens: int
    n: int
    detokenize: bool
    output_kind: str


@dataclass
class Output:
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class Result:
    request_id: str
    outputs: list[Output]
    finished: bool


@dataclass
class Running:
    params: SamplingParams
    written: int = 0


class Engine:
    def __init__(self) -> None:
        self.requests: dict[str, Running] = {}
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(enable_prefix_caching=True), attention_config=SimpleNamespace(backend=None)
        )
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.num_finished, self.most = 0, 0

    def add_request(self, request_id: str, prompt: dict[str, Any], params: SamplingParams) -> None:
        if 99 in prompt["prompt_token_ids"] and setting("REFUSE"):
            raise ValueError("token 99 is not welcome")
        self.requests[request_id] = Running(params)
        self.most = max(self.most, len(self.requests))

    def step(self) -> list[Result]:
        time.sleep(setting("STEP_MS") / 1000)
        results = []
        for request_id, running in list(self.requests.items()):
            params = running.params
            ends = running.written == params.seed % 5 + 1
            token = params.stop_token_ids[0] if ends else 10 + params.seed % 50
            running.written += 1
            reason = "stop" if ends else "length" if running.written == params.max_tokens else None
            results.append(Result(request_id, [Output([token], reason)], reason is not None))
            if reason is not None:
                del self.requests[request_id]
                self.num_finished += 1
        if setting("DIE_AFTER") and self.num_finished >= setting("DIE_AFTER"):
            self.end(results)
        note({"most": self.most})
        return results

    def end(self, results: list[Result]) -> None:
        if setting("BY_ERROR"):
            raise RuntimeError("the fake engine is tired")
        print("the fake engine dies now", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


class LLM:
    def __init__(self, **arguments: Any) -> None:
        note({"pid": os.getpid(), "arguments": arguments, "environment": dict(os.environ)})
        if setting("REFUSE_MODEL"):
            raise ValueError("no such architecture")
        if setting("CHILD"):  # what no process group holds
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            note({"child": child.pid})
            shared = Path(f"/dev/shm/psm_fake_{os.getpid()}")
            shared.write_bytes(b"0" * mmap.PAGESIZE)
            with shared.open("r+b") as file:
                self.shared = mmap.mmap(file.fileno(), 0)
            note({"shared": str(shared)})
        self.llm_engine = Engine()
        self.model_config = SimpleNamespace(
            max_model_len=arguments["max_model_len"] or 256, dtype="torch.float32", enforce_eager=True
        )
        self.renderer = SimpleNamespace(render_cmpl=lambda prompts: prompts)


def note(what: dict[str, Any]) -> None:
    """Append to the file that a test reads."""
    with Path(os.environ["VLLM_FAKE_NOTES"]).open("a") as file:
        file.write(json.dumps(what) + "\n")
