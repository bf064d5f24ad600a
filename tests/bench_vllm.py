"""What the completer `vllm` costs beside vLLM itself: `python -m tests.bench_vllm`. Not a test.

Tokens a second of `VllmCompleter`, from rendering the prompts to durable rows in a journal, over those of a bare
`LLM.generate` loop in the same environment, with the same settings, requests and seeds; loading is in neither. The bare
loop gets token ids and gives text. Processor seconds beside them tell what a busy machine hides. Invariant: both engines
are loaded before the first round, rounds alternate, and the figures are medians; nothing is written outside a
temporary directory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from mot_core.completers.base import Request, Source
from mot_core.completers.journal import Journal
from mot_core.completers.vllm_completer import VllmCompleter
from mot_core.completers.vllm_launch import launches
from mot_core.completers.vllm_process import engine_python
from mot_core.lab import lab_model_path
from mot_core.models import load_tokenizer
from mot_core.prompts import render_prompt
from mot_core.runner import ModelCache
from mot_core.spec import Sampling
from tests.processes import cpu_seconds, descendants

MODEL = "running-total"
SAMPLING = Sampling(temperature=0.7, max_completion_tokens=96)
NUM_REQUESTS, WARM_UP, ROUNDS = 512, 64, 7
GOAL_RATIO = 0.95


def bench(threads: int | None = None) -> dict[str, Any]:
    """Medians, their ratio, every round, and the machine's load before and after; needs `MOT_VLLM_PYTHON`."""
    threads = threads or len(os.sched_getaffinity(0))
    requests = long_sums(NUM_REQUESTS)
    load_before = os.getloadavg()[0]
    cache = ModelCache()
    with tempfile.TemporaryDirectory(prefix="mot-bench-") as directory:
        source = Source(
            str(lab_model_path(MODEL)), None, SAMPLING, threads=threads, load=cache.get, scratch=Path(directory)
        )
        completer = VllmCompleter(source)
        try:
            completer.complete(requests[:WARM_UP], lambda rows: None, lambda tokens: None)
            with bare_loop(completer, requests, Path(directory)) as bare:
                bare(WARM_UP)
                rounds = []
                for number in range(ROUNDS):
                    order = (bare, lambda count: ours(completer, requests[:count], Path(directory)))
                    figures = [run(NUM_REQUESTS) for run in order[:: 1 if number % 2 else -1]]
                    rounds.append(figures[:: 1 if number % 2 else -1])
        finally:
            cache.close()
    return summary(rounds, {"threads": threads, "load_before": load_before, "load_after": os.getloadavg()[0]})


def summary(rounds: list[list[dict[str, float]]], facts: dict[str, Any]) -> dict[str, Any]:
    rates = [[figures["tokens"] / figures["seconds"] for figures in pair] for pair in rounds]
    bare, own = (median(pair[side] for pair in rates) for side in (0, 1))
    # Of pairs, since a shared machine changes from round to round.
    ratio = median(pair[1] / pair[0] for pair in rates)
    costs = [median(1e6 * pair[side]["processor"] / pair[side]["tokens"] for pair in rounds) for side in (0, 1)]
    return {
        "bare_tokens_per_second": round(bare), "completer_tokens_per_second": round(own),
        "ratio": round(ratio, 3), "ratio_by_round": [round(pair[1] / pair[0], 3) for pair in rates],
        "bare_processor_us_per_token": round(costs[0], 1), "completer_processor_us_per_token": round(costs[1], 1),
        "processor_ratio": round(costs[0] / costs[1], 3),
        "tokens_per_request": round(rounds[0][1]["tokens"] / NUM_REQUESTS, 1), "requests": NUM_REQUESTS, **facts,
        "goal_ratio": GOAL_RATIO, "met": ratio >= GOAL_RATIO,
    }  # fmt: skip


def long_sums(count: int) -> list[Request]:
    """Problems whose rationales nearly fill the limit."""
    draw = random.Random(7)
    questions = ["+".join(str(draw.randint(10, 99)) for _ in range(6)) for _ in range(count)]
    return [Request.of({"bench": 1}, f"p{number}", question, 0) for number, question in enumerate(questions)]


def ours(completer: VllmCompleter, requests: list[Request], directory: Path) -> dict[str, float]:
    """The completer, into a new journal."""
    tokens = 0

    def accept(rows: list[Any]) -> None:
        nonlocal tokens
        journal.append(rows, completer.facts())
        tokens += sum(row.num_tokens for row in rows)

    with tempfile.TemporaryDirectory(dir=directory) as place:
        journal = Journal(Path(place), {"bench": 1})
        pids = [pid for pid, command in descendants(os.getpid()).items() if "vllm_worker.py" in command]
        used = time.process_time() + sum(map(cpu_seconds, pids))
        started = time.perf_counter()
        completer.complete(requests, accept, lambda written: None)
        seconds = time.perf_counter() - started
        used = time.process_time() + sum(map(cpu_seconds, pids)) - used
        journal.close()
    return {"tokens": tokens, "seconds": seconds, "processor": used}


@contextmanager
def bare_loop(completer: VllmCompleter, requests: list[Request], directory: Path) -> Iterator[Any]:
    """A function that has the bare loop generate the first requests, and gives its tokens and seconds."""
    model = lab_model_path(MODEL)
    tokenizer: Any = load_tokenizer(str(model))
    launch = launches(completer.source, completer.engine, model)[0]
    arguments = {name: value for name, value in launch.arguments.items() if name not in ("skip_tokenizer_init", "stream_interval")}  # fmt: skip
    prompts = [tokenizer(render_prompt(tokenizer, one.question), add_special_tokens=False)["input_ids"] for one in requests]  # fmt: skip
    task = directory / "bare.json"
    task.write_text(
        json.dumps(
            {
                "arguments": arguments, "sampling": completer.sampling(tokenizer),
                "requests": [
                    [prompt, request.seed, SAMPLING.max_completion_tokens]
                    for prompt, request in zip(prompts, requests, strict=True)
                ],
            }
        )
    )  # fmt: skip
    results, inherited = os.pipe()
    script = Path(__file__).parent / "vllm" / "bare_loop.py"
    with (directory / "bare.log").open("wb") as log:
        process = subprocess.Popen(
            [engine_python(), "-I", str(script), str(task), str(inherited)], stdin=subprocess.PIPE, stdout=log,
            stderr=subprocess.STDOUT, pass_fds=(inherited,), env=dict(launch.environment),
        )  # fmt: skip
    os.close(inherited)
    with os.fdopen(results, "rb") as lines, process:

        def told() -> Any:
            line = lines.readline()
            if not line:
                raise SystemExit("the bare loop ended:\n" + (directory / "bare.log").read_text()[-4000:])
            return json.loads(line)

        def run(count: int) -> Any:
            assert process.stdin is not None
            process.stdin.write(b"%d\n" % count)
            process.stdin.flush()
            return told()

        told()  # it is loaded
        yield run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_vllm", description=__doc__)
    parser.add_argument("--threads", type=int, help="of each engine; default: the cores of this process")
    print(json.dumps(bench(parser.parse_args().threads), indent=1), file=sys.stdout)


if __name__ == "__main__":
    main()
