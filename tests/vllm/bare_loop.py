"""The yardstick of `tests.bench_vllm`: `LLM.generate` over a list of requests and nothing else. Run with vLLM's python.

Reads a JSON file: {"arguments": …, "sampling": …, "requests": [[prompt tokens, seed, max_tokens], …]}; then, for each
line of standard input, generates all of them and writes {"tokens": n, "seconds": s, "processor": s} to the descriptor that it is given.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    results = int(sys.argv[2])
    from vllm import LLM, SamplingParams

    loaded: Any = LLM(**task["arguments"])
    os.write(results, b"{}\n")
    for line in sys.stdin:
        count = json.loads(line)
        requests = task["requests"][:count]
        started, used = time.perf_counter(), time.process_time()
        outputs = loaded.generate(
            [{"prompt_token_ids": prompt} for prompt, _, _ in requests],
            [SamplingParams(**task["sampling"], seed=seed, max_tokens=limit) for _, seed, limit in requests],
            use_tqdm=False,
        )
        seconds, used = time.perf_counter() - started, time.process_time() - used
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        os.write(results, json.dumps({"tokens": tokens, "seconds": seconds, "processor": used}).encode() + b"\n")


if __name__ == "__main__":
    main()
