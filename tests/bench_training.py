"""Branch training beside TRL's SFTTrainer: `python -m tests.bench_training`. Not a test.

    tokens/s   real tokens (padding apart) of one pass over the same examples, over the wall time of its steps
    CPU        the same over the CPU time of its steps, which a busy machine disturbs less; the goal is held to this
    memory     the most that the process held while it trained, above what it held when the model was loaded

Same model, examples, examples a step, rate and number of steps for all (a packed trainer of TRL has rows for batches,
so its steps hold about as many tokens, not the same examples). Lengths are ragged as those of reasoning are: log-normal.
Each run is a process of its own; runs alternate, and a row is the median of its runs.
Invariant: nothing is read but this code, and nothing written but the file that `--markdown` names.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import machine_facts
from tests.processes import status_bytes

GOAL = 1.2
RATE = 1e-3
PROMPT_TOKENS = 24
LONGEST = 1000  # TRL's default length limit is 1,024: it would cut what is longer

# What is changed of each trainer's defaults. TRL's are: bf16, gradient checkpointing, no packing, random batches.
MOT: dict[str, dict[str, Any]] = {
    "mot, defaults": {},
    "mot, packed": {"layout": "packed"},
    "mot, packed, chunked, passes of 4,096": {"layout": "packed", "micro_batch_tokens": 4096, "loss": "chunked"},
}
_FP32: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False}
TRL: dict[str, dict[str, Any]] = {
    "TRL, defaults": {},
    "TRL, fp32, no checkpointing": _FP32,
    "TRL, the same, grouped by length": {**_FP32, "train_sampling_strategy": "group_by_length"},
    "TRL, the same, grouped, 4 × 4 accumulated": {
        **_FP32,
        "train_sampling_strategy": "group_by_length",
        "gradient_accumulation_steps": 4,
    },
    "TRL, the same, 16 × 1 accumulated": {**_FP32, "gradient_accumulation_steps": 16},
    "TRL, the same, padding-free": {**_FP32, "padding_free": True, "max_length": None},
    "TRL, the same, packed (bfd), a row a step": {**_FP32, "packing": True},
    "TRL, the same, packed (bfd), rows of 1,024": {**_FP32, "packing": True, "max_length": 1024},
}


def main() -> None:
    options = parse_arguments()
    if options.arm is not None:
        print("RESULT " + json.dumps(run_arm(options)))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for arm in (name for name in (*MOT, *TRL) if re.search(options.arms, name)):
            made = spawn(arm, options)
            if made is not None:
                runs.setdefault(arm, []).append(made)
                print(
                    f"{arm}: {made['tokens_per_second']:.0f} tokens/s, {made['per_cpu_second']:.0f} a CPU second, {made['memory_bytes'] / 1e6:.0f} MB",
                    flush=True,
                )
    table = markdown(runs, options)
    print(table)
    if options.markdown is not None:
        options.markdown.write_text(table, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench_training", description="Compare with TRL's SFTTrainer."
    )
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--median-tokens", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here as well")
    parser.add_argument("--arms", default="", metavar="REGEX", help="only the trainers that it finds")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    return parser.parse_args()


def spawn(arm: str, options: argparse.Namespace) -> dict[str, float] | None:
    """One run in a process of its own; None if that trainer refuses these settings."""
    given = {"examples", "batch_size", "median_tokens", "hidden", "layers", "vocabulary", "threads"}
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in vars(options).items() if name in given]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench_training", "--arm", arm, *sizes], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        print(f"{arm}: did not run: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no output'}")
        return None
    result: dict[str, float] = json.loads(found[1])
    return result


def run_arm(options: argparse.Namespace) -> dict[str, float]:
    """One trainer over the examples; its speed and memory."""
    import torch

    from mot_core.sft.tokens import Example

    torch.set_num_threads(options.threads)
    draw = random.Random(0)
    examples = []
    for _ in range(options.examples):
        wanted = int(draw.lognormvariate(0.0, 0.8) * options.median_tokens)
        length = min(LONGEST, max(PROMPT_TOKENS + 8, wanted))
        examples.append(Example([draw.randrange(8, options.vocabulary) for _ in range(length)], PROMPT_TOKENS))
    with tempfile.TemporaryDirectory(prefix="mot-bench-") as directory:
        student = write_model(Path(directory), options)
        run = run_mot if options.arm in MOT else run_trl
        clock = Clock()
        steps = run(student, examples, options, clock)
    total = sum(len(example.input_ids) for example in examples)
    return {
        "tokens_per_second": total / clock.seconds, "per_cpu_second": total / clock.cpu_seconds, "memory_bytes": float(clock.memory), "steps": float(steps),
    }  # fmt: skip


def write_model(directory: Path, options: argparse.Namespace) -> Path:
    """A random Qwen3 model, with the laboratory's tokenizer (whose vocabulary it exceeds)."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mot_core.lab.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=options.vocabulary, hidden_size=options.hidden, num_hidden_layers=options.layers,
        intermediate_size=3 * options.hidden, num_attention_heads=4, num_key_value_heads=2, head_dim=options.hidden // 4,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class Clock:
    """Wall time and the most memory between `start` and `stop`."""

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.before = status_bytes("VmRSS")
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self.begun, time.process_time() - self.begun_cpu
        self.memory = status_bytes("VmHWM") - self.before


def run_mot(student: Path, examples: list[Any], options: argparse.Namespace, clock: Clock) -> int:
    """Train; the number of steps."""
    from mot_core.sft.checkpoints import Checkpoints
    from mot_core.sft.students import load_student
    from mot_core.sft.tokens import batch_schedule
    from mot_core.sft.train import Course, Trainee, train
    from mot_core.spec import Training

    changes = {"batch_size": options.batch_size, "learning_rate": RATE, "max_example_tokens": LONGEST}
    settings = Training.model_validate({**changes, **MOT[options.arm]})
    steps = len(examples) // options.batch_size
    batches = batch_schedule([len(one.input_ids) for one in examples], options.batch_size, steps, seed=0)
    trainee = Trainee(load_student(str(student), None, "cpu", settings, 0), settings, 0)
    clock.start()
    log = train(
        trainee,
        examples,
        batches,
        Course(0, 0, 0, steps),
        Checkpoints(student, 1e9),
        after_step=lambda done, entry: None,
    )
    clock.stop()
    return len(log)


def run_trl(student: Path, examples: list[Any], options: argparse.Namespace, clock: Clock) -> int:
    """Train; the number of steps."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from mot_core.models import load_model, load_tokenizer

    class Timed(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
            clock.start()

        def on_train_end(self, *arguments: Any, **keywords: Any) -> None:
            clock.stop()

    changes = dict(TRL[options.arm])
    steps = len(examples) // options.batch_size
    rows = options.batch_size // changes.get("gradient_accumulation_steps", 1)
    if changes.get("packing"):  # as many tokens a step as the examples of a step have on average
        tokens = -(-sum(len(one.input_ids) for one in examples) // steps)
        changes.setdefault("max_length", tokens)
        rows = -(-tokens // changes["max_length"])
    config = SFTConfig(
        output_dir=str(student / "trl"), per_device_train_batch_size=rows, num_train_epochs=1, learning_rate=RATE,
        save_strategy="no", report_to=[], use_cpu=True, completion_only_loss=True, disable_tqdm=True, seed=0, **changes,
    )  # fmt: skip
    data = Dataset.from_list(
        [
            {"input_ids": one.input_ids, "completion_mask": [0] * one.prompt_length + [1] * one.completion_tokens}
            for one in examples
        ]
    )
    model = load_model(str(student), None, "cpu")
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=data, processing_class=load_tokenizer(str(student)), callbacks=[Timed()]
    )
    trainer.train()
    return int(trainer.state.global_step)


def markdown(runs: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    speeds, wall = (
        {arm: median(run[name] for run in made) for arm, made in runs.items()}
        for name in ("per_cpu_second", "tokens_per_second")
    )
    best = {side: max((speed for arm, speed in speeds.items() if arm in side_arms), default=0.0)
            for side, side_arms in (("mot", MOT), ("TRL", TRL))}  # fmt: skip
    lines = [
        "| trainer | tokens/s | tokens/CPU second | of TRL's best | memory, MB | steps |", "| --- | --- | --- | --- | --- | --- |"
    ]  # fmt: skip
    for arm, made in runs.items():
        memory = median(run["memory_bytes"] for run in made) / 1e6
        share = f"{speeds[arm] / best['TRL']:.2f}" if best["TRL"] else "—"
        lines.append(
            f"| {arm} | {wall[arm]:,.0f} | {speeds[arm]:,.0f} | {share} | {memory:,.0f} | {made[0]['steps']:.0f} |"
        )
    ratio = best["mot"] / best["TRL"] if best["TRL"] else 0.0
    verdict = "met" if ratio >= GOAL else "missed"
    facts = machine_facts() | {name: metadata.version(name) for name in ("transformers", "trl")}
    lines += [
        "", f"Ours at its best over TRL at its best: {ratio:.2f} (goal {GOAL}: {verdict}).",
        "", f"{options.examples} examples, {options.batch_size} a step, median {options.median_tokens} tokens (log-normal, "
        f"σ 0.8, at most {LONGEST}); Qwen3, hidden {options.hidden}, {options.layers} layers, vocabulary "
        f"{options.vocabulary:,}; {options.threads} thread(s), load {os.getloadavg()[0]:.1f}; {options.repeats} run(s) "
        f"each; {', '.join(f'{name} {value}' for name, value in facts.items())}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
