"""One completions step asked of an endpoint, in a process of its own that a test may kill.

`python -m tests.completers.drive_endpoint URL STORE NUM_PROBLEMS MAX_CONCURRENCY`; prints the step's counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mot_core.artifacts import Published, Store
from mot_core.completers.stage import ROWS
from mot_core.files import write_jsonl
from mot_core.spec import Endpoint, Sampling
from mot_core.steps import Step
from tests.contexts import publish, run


def complete(url: str, store: Store, num_problems: int, max_concurrency: int) -> Published:
    """The published step: a sample of each problem."""
    problems = [
        {"problem_id": f"p{index}", "family": "sums", "question": f"question {index}", "answer": "4"}
        for index in range(num_problems)
    ]
    parent = Step("problems", {"num": num_problems}, label="problems")
    publish(store, parent, lambda work_dir: write_jsonl(work_dir / "problems.jsonl", problems))
    spec = {
        "teacher": {"model": "tiny"}, "completer": "openai", "sampling": Sampling().record(), "num_samples": 1,
        "seed": 0, "batch_size": 8, "max_failed_share": 0.0,
    }  # fmt: skip
    settings = Endpoint(base_url=url, max_concurrency=max_concurrency).model_dump(mode="json")
    locators = {"teacher": "tiny", "teacher_revision": None, "teacher_settings": settings}
    return run(store, "completions", spec, (("problems", parent),), locators)


def main() -> None:
    url, store, num_problems, max_concurrency = sys.argv[1:]
    published = complete(url, Store(Path(store)).open(), int(num_problems), int(max_concurrency))
    print(json.dumps({"rows": str(published.path / ROWS), **published.counts}))


if __name__ == "__main__":
    main()
