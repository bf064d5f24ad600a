"""What merging costs, beside plain copies and mergekit: `python -m tests.bench_merging`. Not a test.

    copies       reading K inputs and writing one output, in this process
    in process   `merge_models`, each rule once; mean also with a start, and so with its diagnostics
    command      `mot merge`, started to ended, beside `mergekit-yaml` on the same YAML; peaks of anonymous memory

Four branches and a start of a Qwen3-0.6B's shapes in bf16, random, 1.2 GB each, are made in a temporary directory (7.2 GB
in all, removed at the end). mergekit's interpreter is named by MOT_MERGEKIT_PYTHON; without it its column says so.

Invariant: every figure is of this one run, files in the page cache, nothing synced.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.bench import machine_facts
from tests.processes import status_bytes

MERGEKIT = os.environ.get("MOT_MERGEKIT_PYTHON")
BRANCHES = ("ann", "bob", "eve", "joe")
IN_PROCESS_GOAL, COMMAND_GOAL = 2.0, 3.0
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


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="mot-bench-merging-", dir=options.directory) as directory:
        root = Path(directory)
        make_models(root)
        tables = [in_process_table(root), command_table(root, options.methods)]
    text = "\n\n".join([*tables, machine()])
    print("\n" + text)
    if options.markdown is not None:
        options.markdown.write_text(text + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_merging", description="Measure merging.")
    parser.add_argument("--directory", type=Path, help="where 8 GB may be used for a while; absent: the system's own")
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


def in_process_table(root: Path) -> str:
    from mot_core.merging.plan import inspect
    from mot_core.merging.stage import MergeSettings, merge_models

    threads = len(os.sched_getaffinity(0))

    def merged(rule: str, *, with_start: bool) -> float:
        start = inspect("start", root / "start") if with_start else None
        branches = [inspect(name, root / name) for name in BRANCHES]
        with scratch(root) as out:
            began = time.perf_counter()
            settings = MergeSettings(RULES[rule], strict=False, threads=threads)
            merge_models(start, branches, [1 / len(BRANCHES)] * len(BRANCHES), rule, out, settings=settings)
            return time.perf_counter() - began

    copies(root)  # into the page cache
    lines = ["| in process | seconds | copies just before, s | times the copies' |", "| --- | --- | --- | --- |"]
    for rule in RULES:
        for with_start in (False, True) if rule == "mean" else (True,):
            copied = copies(root)
            seconds = merged(rule, with_start=with_start)
            what = f"{rule}{'' if with_start else ', without a start'}"
            verdict = f" ({'met' if seconds <= IN_PROCESS_GOAL * copied else 'missed'})" if rule == "mean" else ""
            lines.append(f"| {what} | {seconds:.2f} | {copied:.2f} | {seconds / copied:.1f}{verdict} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def copies(root: Path) -> float:
    """Read each branch once, write one of them: what no merge can do without."""
    buffer = bytearray(1 << 22)
    with scratch(root) as out:
        began = time.perf_counter()
        for name in BRANCHES:
            with (root / name / "model.safetensors").open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        shutil.copyfile(root / BRANCHES[0] / "model.safetensors", out / "model.safetensors")
        return time.perf_counter() - began


@contextlib.contextmanager
def scratch(root: Path) -> Iterator[Path]:
    out = root / "out"
    out.mkdir()
    try:
        yield out
    finally:
        shutil.rmtree(out, ignore_errors=True)


def command_table(root: Path, methods: list[str]) -> str:
    lines = [
        "| whole command | `mot merge`, s | peak, MB | mergekit, s | peak, MB | times faster |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in methods:
        config = root / f"{method}.yaml"
        config.write_text(yaml.safe_dump(mergekit_document(root, method)))
        ours = timed([sys.executable, "-m", "flows", "merge", str(config), str(root / "ours")], root / "ours")
        if MERGEKIT is None:
            lines.append(f"| {method} | {ours[0]:.1f} | {ours[1] / 1e6:.0f} | MOT_MERGEKIT_PYTHON is not set | | |")
            continue
        theirs = timed(
            [MERGEKIT, "-m", "mergekit.scripts.run_yaml", str(config), str(root / "theirs")], root / "theirs"
        )
        times = theirs[0] / ours[0]
        goal = COMMAND_GOAL if method == "linear" else 1.0
        lines.append(
            f"| {method} | {ours[0]:.1f} | {ours[1] / 1e6:.0f} | {theirs[0]:.1f} | {theirs[1] / 1e6:.0f} | "
            f"{times:.1f} ({'met' if times >= goal else 'missed'}) |"
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


def timed(command: list[str], out: Path) -> tuple[float, int]:
    """Wall time of a process, and the peak of its anonymous memory (mapped files apart)."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    began = time.perf_counter()
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
    return seconds, peak


def machine() -> str:
    facts = {**machine_facts(), "load average at the end": f"{os.getloadavg()[0]:.1f}"}
    return ", ".join(f"{name} {value}" for name, value in facts.items())


if __name__ == "__main__":
    main()
