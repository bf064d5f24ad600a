"""One `completions` step in this process, as a worker computes it: `python -m tests.vllm.drive_completions STORE COUNT`."""

from __future__ import annotations

import sys
from pathlib import Path

from mot_core.artifacts import Published, Store
from mot_core.files import write_jsonl
from mot_core.lab import lab_model_path
from mot_core.lab.families import draw_problems
from mot_core.runner import ModelCache, RunSettings, run_step
from mot_core.spec import Engine
from mot_core.steps import RemoteStep, Step
from tests.contexts import publish

SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_completion_tokens": 96}


def problems_step(store: Store, count: int) -> Step:
    """The laboratory's sums, published."""
    rows = [problem.to_json() for problem in draw_problems("sums", "train", count, 1)]
    return publish(store, Step("problems", {"count": count}), lambda path: write_jsonl(path / "problems.jsonl", rows))


def compute(store: Store, step: Step, cache: ModelCache, threads: int = 2) -> Published:
    settings = RunSettings(threads=threads, checkpoint_seconds=1e9)
    return run_step(RemoteStep.from_json(step.to_json()), store, settings, lambda event: None, cache)


def completions_step(store: Store, count: int, num_samples: int = 2) -> Step:
    """A teacher's completions by vLLM."""
    return Step(
        "completions",
        {
            "teacher": {"model": "running-total"}, "completer": "vllm", "sampling": SAMPLING, "num_samples": num_samples,
            "seed": 1, "batch_size": 64, "max_failed_share": 0.0,
        },
        (("problems", problems_step(store, count)),),
        label="generate",
        locators={
            "teacher": str(lab_model_path("running-total")), "teacher_settings": Engine().model_dump(mode="json")
        },
    )  # fmt: skip


def main() -> None:
    store, cache = Store(Path(sys.argv[1])).open(), ModelCache()
    try:
        published = compute(store, completions_step(store, int(sys.argv[2])), cache)
    finally:
        cache.close()
    print(published.counts["num_asked"])


if __name__ == "__main__":
    main()
