"""What merging costs, beside plain copies and mergekit: `python -m tests.bench_merging`. Not a test.

    copies       reading K inputs and writing one output, in this process
    in process   `merge_models`, each rule; the mean without a start, and so without diagnostics, and with both
    command      `mot merge`, started to ended, before and after `mergekit-yaml` on the same YAML; peaks of anonymous memory

Four branches and a start of a Qwen3-0.6B's shapes in bf16, random, 1.2 GB each, are made in a temporary directory (7.2 GB
in all, removed at the end). mergekit's interpreter is named by MOT_MERGEKIT_PYTHON; without it its column says so.
Wall seconds depend on what else runs: the load average stands beside them, and processor seconds (own and the kernel's).

Invariant: every figure is of this one run, files in the page cache, nothing synced.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from tests.bench import machine_facts
from tests.processes import status_bytes

MERGEKIT = os.environ.get("MOT_MERGEKIT_PYTHON")
BRANCHES = ("ann", "bob", "eve", "joe")
IN_PROCESS_GOAL, COMMAND_GOAL = 2.0, 3.0
REPEATS = 5
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 28, 1024, 3072, 16, 8, 128, 151_936
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
    "vocab_size": VOCABULARY, "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000,
    "max_position_embeddings": 40_960, "hidden_act": "silu", "torch_dtype": "bfloat16", "attention_bias": False,
}  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    "mean": {}, "task_arithmetic": {}, "ties": {"density": 0.5}, "dare": {"density": 0.5}, "dare_ties": {"density": 0.5},
    "slerp": {}, "interpolate": {"rate": 0.5}, "outer": {}, "ema": {},
}  # fmt: skip
MERGEKIT_METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp")


@dataclass(frozen=True)
class Cost:
    """Of one call or process: wall and processor seconds, the load average at its end, the peak of its memory."""

    wall: float
    cpu: float
    load: float
    peak: int = 0


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="mot-bench-merging-", dir=options.directory) as directory:
        root = Path(directory)
        make_models(root)
        tables = [in_process_table(root, options.rules), command_table(root, options.methods)]
    text = "\n\n".join([*tables, machine()])
    print("\n" + text)
    if options.markdown is not None:
        options.markdown.write_text(text + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_merging", description="Measure merging.")
    parser.add_argument("--directory", type=Path, help="where 8 GB may be used for a while; absent: the system's own")
    parser.add_argument("--rules", nargs="*", default=list(RULES), help="of ours, to measure in process")
    parser.add_argument("--methods", nargs="*", default=MERGEKIT_METHODS, help="of mergekit, to compare on")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here as well")
    return parser.parse_args()


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)
    }  # fmt: skip
    for layer in range(LAYERS):
        own = {
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,), "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM), "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
        }  # fmt: skip
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found


def make_models(root: Path) -> None:
    """A start, and branches a twentieth of its spread away from it."""
    import math

    import torch
    from safetensors.torch import save_file

    largest = max(math.prod(shape) for shape in shapes().values())
    noise = torch.randn(largest + 4096, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()

    def drawn(number: int, shape: tuple[int, ...]) -> torch.Tensor:
        first = 17 * number % 4096
        return noise[first : first + math.prod(shape)].reshape(shape)

    for place, name in enumerate(("start", *BRANCHES)):
        tensors = {}
        for number, (key, shape) in enumerate(shapes().items()):
            start = drawn(number, shape)
            tensors[key] = (start + 0.05 * drawn(number + 61 * place, shape)) if place else start.clone()
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
        (root / name / "config.json").write_text(json.dumps(CONFIG))


def in_process_table(root: Path, rules: list[str]) -> str:
    """Merges and copies alternate; medians, and the least of the ratios of neighbours, which other work disturbed least."""
    from mot_core.merging.plan import inspect
    from mot_core.merging.stage import MergeSettings, merge_models

    threads = len(os.sched_getaffinity(0))

    def merged(rule: str, with_start: bool) -> None:
        start = inspect("start", root / "start") if with_start else None
        branches = [inspect(name, root / name) for name in BRANCHES]
        with scratch(root) as out:
            settings = MergeSettings(RULES[rule], strict=False, threads=threads)
            merge_models(start, branches, [1 / len(BRANCHES)] * len(BRANCHES), rule, out, settings=settings)

    copies(root)  # into the page cache
    lines = [
        "| in process | wall, s | CPU, s | copies, wall, s | CPU, s | times the copies', median (least) | load |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rule in rules:
        for with_start in (False, True) if rule == "mean" else (True,):
            pairs = [(costs(partial(copies, root)), costs(partial(merged, rule, with_start))) for _ in range(REPEATS)]
            ratios = [merge.wall / copy.wall for copy, merge in pairs]
            what = f"{rule}{'' if with_start else ', no start, no diagnostics'}"
            verdict = f", {'met' if median(ratios) <= IN_PROCESS_GOAL else 'missed'}" if rule == "mean" else ""
            figures = [
                median(values)
                for one in (1, 0)
                for values in zip(*((p[one].wall, p[one].cpu) for p in pairs), strict=True)
            ]
            cells = " | ".join(f"{figure:.2f}" for figure in figures)
            load = f"{pairs[0][0].load:.1f} to {pairs[-1][1].load:.1f}"
            lines.append(f"| {what} | {cells} | {median(ratios):.1f} ({min(ratios):.1f}){verdict} | {load} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def costs(call: Callable[[], None]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, os.getloadavg()[0])


def copies(root: Path) -> None:
    """Read each branch once, write one of them: what no merge can do without."""
    buffer = bytearray(1 << 22)
    with scratch(root) as out:
        for name in BRANCHES:
            with (root / name / "model.safetensors").open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        shutil.copyfile(root / BRANCHES[0] / "model.safetensors", out / "model.safetensors")


@contextlib.contextmanager
def scratch(root: Path) -> Iterator[Path]:
    out = root / "out"
    out.mkdir()
    try:
        yield out
    finally:
        shutil.rmtree(out, ignore_errors=True)


def command_table(root: Path, methods: list[str]) -> str:
    """Ours before and after mergekit; the mean of both."""
    lines = [
        "| whole command | `mot merge`, wall, s | CPU, s | peak, MB | mergekit, wall, s | CPU, s | peak, MB | times faster "
        "| CPU | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in methods:
        config = root / f"{method}.yaml"
        config.write_text(yaml.safe_dump(mergekit_document(root, method)))
        command = [sys.executable, "-m", "flows", "merge", str(config), str(root / "ours")]
        before = timed(command, root / "ours")
        theirs = [MERGEKIT, "-m", "mergekit.scripts.run_yaml", str(config), str(root / "theirs")] if MERGEKIT else None
        other = timed(theirs, root / "theirs") if theirs is not None else None
        after = timed(command, root / "ours")
        wall, cpu = (before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2
        cells = (
            f"| {method} | {before.wall:.1f}, {after.wall:.1f} | {cpu:.1f} | {max(before.peak, after.peak) / 1e6:.0f} "
        )
        load = f"{before.load:.1f} to {after.load:.1f}"
        if other is None:
            lines.append(f"{cells}| MOT_MERGEKIT_PYTHON is not set | | | | | {load} |")
        else:
            times = other.wall / wall
            verdict = "met" if times >= (COMMAND_GOAL if method == "linear" else 1.0) else "missed"
            lines.append(
                f"{cells}| {other.wall:.1f} | {other.cpu:.1f} | {other.peak / 1e6:.0f} | {times:.1f} ({verdict}) | "
                f"{other.cpu / cpu:.1f} | {load} |"
            )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def mergekit_document(root: Path, method: str) -> dict[str, Any]:
    if method == "slerp":
        pair = [{"model": str(root / name)} for name in BRANCHES[:2]]
        return {
            "merge_method": "slerp",
            "base_model": pair[0]["model"],
            "models": pair,
            "parameters": {"t": 0.5},
            "dtype": "bfloat16",
        }
    own = {"weight": 1 / len(BRANCHES), **({"density": 0.5} if "ties" in method or "dare" in method else {})}
    models = [{"model": str(root / name), "parameters": own} for name in BRANCHES]
    base = {} if method == "linear" else {"base_model": str(root / "start")}
    return {"merge_method": method, **base, "models": models, "dtype": "bfloat16"}


def timed(command: list[str], out: Path) -> Cost:
    """A process from start to end; its peak is of anonymous memory (mapped files apart)."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    began, used = time.perf_counter(), children_cpu()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                peak = max(peak, status_bytes("RssAnon", process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    shutil.rmtree(out, ignore_errors=True)
    if process.returncode != 0:
        raise SystemExit(f"{command[:3]} failed:\n{errors[-3000:]}")
    return Cost(seconds, children_cpu() - used, os.getloadavg()[0], peak)


def children_cpu() -> float:
    """Processor seconds of the children that have been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine() -> str:
    facts = {**machine_facts(), "load average at the end": f"{os.getloadavg()[0]:.1f}"}
    return ", ".join(f"{name} {value}" for name, value in facts.items())


if __name__ == "__main__":
    main()
