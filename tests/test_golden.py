"""Golden results: what each kind of step gives for a fixed spec. If a value here changes, results have changed:
raise the kind's version in `mot_core.identity.ALGORITHM_VERSIONS`, then set the new value.

Integers and texts are compared exactly; floats with tolerances that other CPUs keep.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mot_core.artifacts import Published, Store
from mot_core.corpus.tables import read_corpus
from mot_core.files import read_jsonl, sha256_of
from mot_core.identity import ALGORITHM_VERSIONS, canonical_json
from mot_core.steps import Step
from tests.contexts import run

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
PINNED_ELSEWHERE = ("confidence", "landscape")  # in tests/probes
SAMPLING = {"temperature": 0.7, "top_p": 0.95, "max_completion_tokens": 12}
TRAINING = {
    "learning_rate": 1e-2, "batch_size": 2, "schedule": "linear", "warmup_steps": 1, "weight_decay": 0.01,
    "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0, "max_example_tokens": 192,
}  # fmt: skip


class Chain:
    """Every kind of step once, each after its parents, over pico models."""

    def __init__(self, models: Path, root: Path) -> None:
        self.models, self.store = models, Store(root).open()
        self.steps: dict[str, Step] = {}
        self.made: dict[str, Published] = {}
        families = {
            "families": ["sums", "products"], "table": None, "import_path": None, "num_problems": 8, "seed": 3,
            "splits": None, "grader": "family",
        }  # fmt: skip
        self.add("problems", "problems", {**families, "split": "train", "role": "training"})
        self.add("benchmark", "problems", {**families, "split": "test", "role": "benchmark"})
        self.add(
            "overlap", "overlap", {"ngram": 13, "on_hit": "remove", "benchmarks": ["all"]},
            **{"problems": "problems", "benchmark/0": "benchmark"},
        )  # fmt: skip
        removed = [row["problem_id"] for row in read_jsonl(self.file("problems", "problems.jsonl"))[:1]]
        self.add("fewer", "training-problems", {"removed": removed}, problems="problems")
        for name, completer in (("ann", "Scripted"), ("bob", "ScriptedTens")):
            spec = {
                "teacher": {"model": name}, "completer": f"tests.pico:{completer}", "sampling": SAMPLING, "num_samples": 1,
                "seed": 1, "batch_size": 8, "max_failed_share": 0.05,
            }  # fmt: skip
            self.add(
                f"completions {name}",
                "completions",
                spec,
                problems="problems",
                locators={"teacher": str(models / name)},
            )
            self.add(
                f"verdicts {name}",
                "verdicts",
                {"grader": "family"},
                problems="problems",
                completions=f"completions {name}",
            )
        corpora = {
            "mode": "matched", "match_over": ["ann", "bob"], "num_rationales": 4, "rationales_per_problem": 1,
            "selection_seed": 2, "choice": "first", "filter_correct": True,
            "licenses": {"teachers": {"ann": "mit", "bob": None}, "problems": None},
        }  # fmt: skip
        self.add(
            "corpora",
            "corpora",
            corpora,
            **{"problems": "problems", "verdicts/ann": "verdicts ann", "verdicts/bob": "verdicts bob"},
        )
        self.add("shuffled", "shuffled-corpora", {"teachers": ["ann", "bob"], "seed": 4}, corpora="corpora")
        for name in ("ann", "bob"):
            spec = {
                "student": "s", "corpora": [name], "training": TRAINING, "order_seed": 5, "first_step": 0, "num_steps": 4,
                "total_steps": 8, "snapshot_steps": [],
            }  # fmt: skip
            self.add(f"branch {name}", "branch", spec, corpora="corpora", locators=self.student())
        on_policy = {
            "student": "s", "teachers": ["ann", "bob"], "training": TRAINING, "order_seed": 7, "first_step": 0,
            "num_steps": 2, "snapshot_steps": [],
            "on_policy": {"beta": 1.0, "target": "mean", "temperature": 1.0, "max_completion_tokens": 6},
        }  # fmt: skip
        teachers = [[name, str(models / name), None] for name in ("ann", "bob")]
        locators = {**self.student(), "teachers": teachers, "layout": {}}
        self.add("on-policy", "on-policy", on_policy, problems="problems", locators=locators)
        merge = {"student": "s", "rule": "mean", "weights": [0.5, 0.5]}
        self.add(
            "merge", "merge", merge, **{"branch/ann": "branch ann", "branch/bob": "branch bob"}, locators=self.student()
        )
        evaluation = {
            "k": 2, "num_samples": 2, "sampling": SAMPLING, "grader": "family", "completer": "transformers", "seed": 6,
            "batch_size": 8, "max_failed_share": 0.05, "student": "s",
        }  # fmt: skip
        # Of the untrained student, so that no other machine's training changes what is sampled.
        self.add("evaluation", "evaluation", evaluation, problems="problems", locators=self.student())

    def student(self) -> dict[str, Any]:
        return {"student": str(self.models / "student"), "student_revision": None}

    def add(
        self, name: str, kind: str, spec: dict[str, Any], locators: dict[str, Any] | None = None, **parents: str
    ) -> None:
        held = tuple((role, self.steps[parent]) for role, parent in parents.items())
        self.steps[name] = Step(kind, spec, held)
        self.made[name] = run(self.store, kind, spec, held, locators)

    def file(self, name: str, file: str) -> Path:
        return self.made[name].path / file


@pytest.fixture(scope="module")
def chain(pico_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(pico_models, tmp_path_factory.mktemp("golden") / "store")


def text_hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def observe(chain: Chain) -> dict[str, Any]:
    """Everything that is compared, as JSON."""
    corpora = {name: read_corpus(chain.file("corpora", f"{name}.parquet")) for name in ("ann", "bob")}
    parts = [
        [row["completion_key"] for row in read_corpus(chain.file("shuffled", f"part-{n}.parquet"))] for n in (1, 2)
    ]
    graded = read_jsonl(chain.file("evaluation", "graded.jsonl"))
    rows = read_jsonl(chain.file("evaluation", "completions.jsonl"))
    return {
        "identities": {name: step.identity for name, step in chain.steps.items()},
        "problems": sha256_of(chain.file("problems", "problems.jsonl")),
        "completions": {name: text_hash(read_jsonl(chain.file(f"completions {name}", "completions.jsonl"))) for name in corpora},
        "verdicts": {name: [row["verdict"] for row in read_jsonl(chain.file(f"verdicts {name}", "verdicts.jsonl"))] for name in corpora},
        "corpora": {name: text_hash(rows_) for name, rows_ in corpora.items()},
        "matched_problems": [row["problem_id"] for row in corpora["ann"]],
        "shuffled": text_hash(parts),
        "losses": {name: [row["loss"] for row in read_jsonl(chain.file(f"branch {name}", "training.jsonl"))] for name in corpora},
        "tokens": {name: [row["tokens"] for row in read_jsonl(chain.file(f"branch {name}", "training.jsonl"))] for name in corpora},
        "evaluation_requests": text_hash([[row["key"], row["sample_index"]] for row in graded]),
        "evaluation_texts": [row["text"] for row in rows],
    }  # fmt: skip


def test_every_kind_is_here(chain: Chain) -> None:
    # What the harness measures is lm-eval's: tests/evaluation/test_harness.py checks it by hand.
    assert {step.kind for step in chain.steps.values()} | {"judgements", "harness", *PINNED_ELSEWHERE} == set(
        ALGORITHM_VERSIONS
    )


@pytest.mark.parametrize(
    "what",
    ["identities", "problems", "completions", "verdicts", "corpora", "matched_problems", "shuffled", "tokens",
     "evaluation_requests"],
)  # fmt: skip
def test_exact(chain: Chain, what: str) -> None:
    assert observe(chain)[what] == GOLDEN[what]


def test_losses(chain: Chain) -> None:
    for name, losses in observe(chain)["losses"].items():
        assert losses == pytest.approx(GOLDEN["losses"][name], rel=1e-4)


def test_the_first_divergence(chain: Chain) -> None:
    first = read_jsonl(chain.file("on-policy", "training.jsonl"))[0]
    assert [first["loss"], first["grad_norm"]] == pytest.approx(GOLDEN["on_policy"], rel=1e-4)


def test_sampled_texts(chain: Chain) -> None:
    # Another CPU may round a logit otherwise, and tip a close draw; nearly all must agree.
    ours, golden = observe(chain)["evaluation_texts"], GOLDEN["evaluation_texts"]
    assert len(ours) == len(golden) == 16
    assert sum(a != b for a, b in zip(ours, golden, strict=True)) <= 1


def test_the_merge_of_exact_weights_is_exact(chain: Chain) -> None:
    # Halves are exact in binary, so the merged bytes follow from the branches' on every machine.
    ann, bob = (load_file(chain.file(f"branch {name}", "model.safetensors")) for name in ("ann", "bob"))
    merged = load_file(chain.file("merge", "model.safetensors"))
    for key in ann:
        assert torch.equal(merged[key], ((ann[key].double() + bob[key].double()) / 2).float()), key


def test_the_golden_merge(pico_models: Path, tmp_path: Path) -> None:
    from mot_core.merging.plan import inspect
    from mot_core.merging.stage import merge_models

    start = inspect("start", pico_models / "student")
    branches = [inspect(name, pico_models / name) for name in ("ann", "bob")]
    diagnostics = merge_models(start, branches, [0.5, 0.5], "mean", tmp_path)
    assert sha256_of(tmp_path / "model.safetensors") == GOLDEN["merge_sha256"]
    assert diagnostics["agreement"] == pytest.approx(GOLDEN["agreement"], rel=1e-9)
