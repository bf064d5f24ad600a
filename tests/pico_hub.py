"""A Hugging Face cache that holds pico models and made-up rows under the ids that a preset names.

With HF_HOME at it and the hub offline, a preset runs as it is written: ids, revisions, formats, splits and filters are
its own, and pass through the same code as on a machine that has downloaded them. Models are random, of the architecture
that each id has, over a byte-level tokenizer with the chat template's form; every question is a sum.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mot_core.completers.base import Accept, Completion, Request
from mot_core.completers.transformers_completer import TransformersCompleter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QWEN3_VOCABULARY = 151_936
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def sum_of(question: str) -> int | None:
    """The answer to `… 12 + 34 …`; None where nothing is added."""
    found = re.search(r"(\d+) \+ (\d+)", question)
    return int(found[1]) + int(found[2]) if found else None


def rationale_of(question: str, teacher: str) -> tuple[str, str]:
    """A teacher's reasoning and answer, in words of its own; wrong on every eighth question or so."""
    answer = sum_of(question)
    wrong = hashlib.sha256((teacher + question).encode()).digest()[0] % 8 == 0
    return f"{teacher} adds the two numbers and gets {answer}.", f"\\boxed{{{-1 if wrong else answer}}}"


class Answering(TransformersCompleter):
    """A teacher whose pico model is loaded, prompted and sampled like any other; what it says is then replaced by a
    rationale, since random weights answer nothing."""

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        teacher = self.source.locator.rpartition("/")[2]

        def say(sampled: list[Completion]) -> None:
            accept([self._said(request, row, teacher) for request, row in zip(requests, sampled, strict=True)])

        super().complete(requests, say, progress)

    @staticmethod
    def _said(request: Request, sampled: Completion, teacher: str) -> Completion:
        reasoning, answer = rationale_of(request.question, teacher)
        text = f"<think>\n{reasoning}\n</think>\n\n{answer}"
        return Completion.of(
            request, text, len(text), "stop", prompt=sampled.prompt, prompt_tokens=sampled.prompt_tokens
        )


# -- models ----------------------------------------------------------------------------------------------

ARCHITECTURES = {
    "Qwen/Qwen3-14B": "Qwen3ForCausalLM",
    "Qwen/Qwen3-32B": "Qwen3ForCausalLM",
    "Qwen/Qwen3-1.7B": "Qwen3ForCausalLM",
    "Qwen/Qwen3-4B": "Qwen3ForCausalLM",
    "Qwen/QwQ-32B": "Qwen2ForCausalLM",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen3MoeForCausalLM",
}
TIED = ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B")


def write_pico_of(directory: Path, hub_id: str, *, vocabulary: int = 264, hidden: int = 32) -> Path:
    """A random model of the architecture of a hub id: two layers, head and embedding tied as there."""
    import torch
    import transformers

    from tests.test_prompts import QWEN3, THINKING, byte_level

    architecture = ARCHITECTURES[hub_id]
    tokenizer = byte_level(THINKING if architecture == "Qwen2ForCausalLM" else QWEN3)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": 2, "intermediate_size": 48,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 40_960,
        "tie_word_embeddings": hub_id in TIED, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if architecture == "Qwen3MoeForCausalLM":
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    elif architecture == "Qwen2ForCausalLM":
        del sizes["head_dim"]
    torch.manual_seed(len(hub_id))
    config = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(**sizes)
    model = getattr(transformers, architecture)(config).to(torch.bfloat16)
    directory.mkdir(parents=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


# -- the cache -------------------------------------------------------------------------------------------


class PicoHub:
    """A cache in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that shall find nothing else."""
        return {"HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}

    def model(self, hub_id: str) -> Path:
        """Where a model's files of the one revision that there is go."""
        return self._snapshot("models", hub_id, None)

    def files(self, hub_id: str, revision: str | None, name: str, rows: list[dict[str, Any]]) -> None:
        """A file of a data set's repository, as JSONL or parquet by its name."""
        path = self._snapshot("datasets", hub_id, revision) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            write_parquet(path, rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data_set(self, hub_id: str, config: str, splits: Mapping[str, list[dict[str, Any]]]) -> None:
        """A data set as `datasets` keeps it once it was loaded."""
        from datasets.naming import camelcase_to_snakecase
        from datasets.packaged_modules.parquet.parquet import Parquet

        owner, name = hub_id.split("/")
        scratch = self.home / "scratch"
        scratch.mkdir(parents=True)
        for split, rows in splits.items():
            write_parquet(scratch / f"{split}.parquet", rows)
        builder = Parquet(
            cache_dir=str(scratch / "built"), dataset_name=camelcase_to_snakecase(name), config_name=config, hash=COMMIT,
            data_files={split: [str(scratch / f"{split}.parquet")] for split in splits},
        )  # type: ignore[no-untyped-call]  # fmt: skip
        builder.download_and_prepare()
        kept = self.home / "datasets" / f"{owner}___{camelcase_to_snakecase(name)}" / config / "0.0.0" / COMMIT
        kept.parent.mkdir(parents=True)
        shutil.move(builder.cache_dir, kept)
        shutil.rmtree(scratch)

    def _snapshot(self, kind: str, hub_id: str, revision: str | None) -> Path:
        root = self.home / "hub" / f"{kind}--{hub_id.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(COMMIT)
        return root / "snapshots" / (revision or COMMIT)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


# -- rows, in the columns that mot_core.formats knows -------------------------------------------------------


def sums(wording: str, first: int, number: int) -> Iterator[tuple[str, str]]:
    """Questions and answers; different wordings or ranges share no question."""
    for a in range(first, first + number):
        yield wording.format(f"{a} + {a + 7}"), str(2 * a + 7)


def aime_rows(number: int, first: int) -> list[dict[str, Any]]:
    return [
        {"id": index, "problem": question, "solution": f"It is {answer}.", "answer": answer, "url": "u"}
        for index, (question, answer) in enumerate(sums("Find the value of ${}$.", first, number))
    ]


def fill_benchmarks(hub: PicoHub) -> None:
    """The benchmarks of both presets."""
    hub.data_set("AI-MO/aimo-validation-aime", "default", {"train": aime_rows(90, 100)})
    hub.data_set("math-ai/aime25", "default", {"test": aime_rows(30, 300)})
    math_500 = [
        {
            "problem": question,
            "solution": "s",
            "answer": answer,
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/{index}",
        }
        for index, (question, answer) in enumerate(sums("Evaluate \\({}\\).", 400, 6))
    ]
    hub.data_set("HuggingFaceH4/MATH-500", "default", {"test": math_500})


def fill_paper(hub: PicoHub) -> None:
    """What else `paper-qwen3-14b` names."""
    boba = [
        {"prompt": f"<｜User｜>\n{question} {BOXED}<｜Assistant｜><think>\n", "task": "math", "query_id": f"q{index}",
         "solutions": [f"\\boxed{{{answer}}}"]}
        for index, (question, answer) in enumerate(sums("Add them up: {}.", 10, 20))
    ]  # fmt: skip
    hub.files("inclusionAI/AReaL-boba-Data", None, "AReaL-boba-106k.jsonl", boba)
    hub.files("inclusionAI/AReaL-boba-Data", None, "AReaL-boba-SFT-200.jsonl", [{"other": "columns"}])
    s1k = [
        {"question": question, "solution": answer, "cot_type": "math" if index % 4 else "crossword", "source_type": "made",
         "metadata": "{}", "gemini_thinking_trajectory": "g", "gemini_attempt": "G",
         "deepseek_thinking_trajectory": "d", "deepseek_attempt": "D"}
        for index, (question, answer) in enumerate(sums("How much is {}?", 40, 24))
    ]  # fmt: skip
    hub.data_set("simplescaling/s1K-1.1", "default", {"train": s1k})
    gsm8k = [
        {"question": question, "answer": f"Add. <<{answer}>>\n#### {answer}"}
        for question, answer in sums("Tom has {} apples. How many?", 500, 6)
    ]
    hub.data_set("openai/gsm8k", "main", {"train": gsm8k[:2], "test": gsm8k[2:]})
    for index, objects in enumerate(("three", "five", "seven")):
        rows = [
            {"input": f"{question}\nOptions:\n(A) {answer}\n(B) 0", "target": "(A)"}
            for question, answer in sums("Which is {}?", 600 + 10 * index, 2)
        ]
        hub.files("lighteval/big_bench_hard", None, f"logical_deduction_{objects}_objects/train/0000.parquet", rows)


def fill_single_gpu(hub: PicoHub, revision: str) -> None:
    """What else `single-gpu-24gb` names: two files within its pattern, and one outside it that cannot be read."""
    rows = []
    for index, (question, answer) in enumerate(sums("Compute {}.", 10, 24)):
        for teacher in ("DeepSeek-R1", "QwQ-32B"):
            reasoning, said = rationale_of(question, teacher)
            rows.append(
                {"expected_answer": answer, "problem_type": "has_answer_extracted" if index % 6 else "converted_proof",
                 "problem_source": "aops_c4_high_school_math", "generation_model": teacher, "pass_rate_72b_tir": "0.5",
                 "problem": question, "generated_solution": f"<think>\n{reasoning}\n</think>\n\n{said}",
                 "inference_mode": "cot", "used_in_kaggle": False}
            )  # fmt: skip
    data = "nvidia/OpenMathReasoning"
    hub.files(data, revision, "data/cot-00000-of-00144.parquet", rows[::2])
    hub.files(data, revision, "data/cot-00007-of-00144.parquet", rows[1::2])
    hub.files(data, revision, "data/cot-00008-of-00144.parquet", [{"other": "columns"}])


def in_environment(hub: PicoHub, **more: str) -> dict[str, str]:
    """A child process's environment: this one's, the cache, one thread."""
    root = Path(__file__).resolve().parent.parent
    return {**os.environ, **hub.environment, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **more}


# -- long examples ---------------------------------------------------------------------------------------

TRAINED_TOKENS = 400
"""At least so many tokens of each long example carry loss."""


def long_rows(number: int) -> list[dict[str, Any]]:
    """A corpus of long rationales: a byte is a token."""
    from mot_core.corpus.tables import example_messages

    rows = []
    for index, (question, answer) in enumerate(sums("How much is {}?", 10, number)):
        thought = f"Step {index}: add the two numbers. " * (TRAINED_TOKENS // 30)
        text = f"<think>\n{thought}\n</think>\n\n\\boxed{{{answer}}}"
        rows.append(
            {"problem_id": f"p-{index}", "family": "sums", "question": question, "teacher": "deepseek-r1",
             "completion_key": f"k-{index}", "completion_tokens": len(text), "messages": example_messages(question, text)}
        )  # fmt: skip
    return rows
