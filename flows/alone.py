"""Stages by themselves, on files: what `mot generate` does. The same steps, store and workers as in an experiment,
so that what is generated here is never paid for again there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.run import Announce, RunOptions
from mot_core.artifacts import Store
from mot_core.completers.base import COMPLETERS
from mot_core.completers.stage import ROWS
from mot_core.dag import completions_step, problems_step
from mot_core.files import explain_disk_errors, read_jsonl, whole_file, write_jsonl
from mot_core.spec import Generation, ProblemSource, Teacher
from mot_core.steps import Step
from mot_core.workers.pool import WorkerPool
from mot_core.world import check_named, files_identity, teacher_ref
from tasks.invocation import Watcher


def generate(
    problems: Path, out: Path, teacher: Teacher, generation: Generation, answer_type: str, options: RunOptions,
    watch: Watcher = lambda step, event: None, announce: Announce = lambda line, num_steps: None,
    format_name: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A teacher's completions of a problems file, as rows that `mot grade` reads; the step's counts.

    Raises:
        MotError: as in an experiment. Whatever was answered is kept in the store: the same call goes on from it.
    """
    check_named("completer", teacher.completer, COMPLETERS)
    source = ProblemSource(file=str(problems), format=format_name)
    files = {str(problems): files_identity(str(problems), "problems")}
    model = teacher_ref(teacher, f"teacher {teacher.name!r}")
    store = Store(options.store).open()
    drawn = problems_step(source, files, role="training", grader=answer_type, label=f"problems of {problems.name}")
    completions = completions_step(generation, teacher, model, drawn, name=teacher.name)
    announce(f"{teacher.name} on {problems}; what is answered is kept in {store.root}", 2)
    with store.in_use(f"mot generate {problems.name}"):
        pool = WorkerPool(store, 1, options.checkpoint_seconds)  # one teacher is one job
        try:
            counts = _obtain(pool, [drawn, completions], watch)
        finally:
            pool.close()
        by_id = {row["problem_id"]: row for row in read_jsonl(store.object_dir(drawn.identity) / "problems.jsonl")}
        rows = [
            {
                "id": row["key"], "answer_type": answer_type, "family": by_id[row["problem_id"]]["family"],
                "gold": by_id[row["problem_id"]]["answer"], "completion": row["text"],
                "question": by_id[row["problem_id"]]["question"], "teacher": teacher.name,
                **{name: row[name] for name in ("problem_id", "sample_index", "seed", "num_tokens", "finish_reason", "reason")},
            }
            for row in read_jsonl(store.object_dir(completions.identity) / ROWS)
        ]  # fmt: skip
    with explain_disk_errors(str(out)):
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as unfinished:
            write_jsonl(unfinished, rows)
    return {**counts, "num_problems": len(by_id)}


def _obtain(pool: WorkerPool, steps: list[Step], watch: Watcher) -> dict[str, Any]:
    """Publish the steps, in order, in one worker if any is missing; the counts of the last."""
    found = [pool.store.find(step.identity) for step in steps]
    missing = [step for step, record in zip(steps, found, strict=True) if record is None]
    if missing:
        pool.run(missing, 0, watch)
    last = pool.store.find(steps[-1].identity)
    assert last is not None, f"{steps[-1].label} was published a moment ago"
    return {**last.counts, "num_asked": last.counts["num_asked"] if found[-1] is None else 0}
