"""The first stage: drawing problems, from the laboratory, a file, or a function of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mot_core.artifacts import write_jsonl
from mot_core.errors import ProblemError
from mot_core.problems import Problem
from mot_core.runner import StepContext
from mot_core.steps import load_object


def draw_problems(context: StepContext) -> dict[str, Any]:
    """Runner of `problems`."""
    problems = problems_from(context.spec, context.step.locators.get("file"))
    write_jsonl(context.work_dir / "problems.jsonl", [problem.to_json() for problem in problems])
    return {"num_problems": len(problems)}


def problems_from(spec: Any, file: str | None) -> list[Problem]:
    """The problems of a `ProblemSource` (as its dictionary), each once.

    Raises:
        ProblemError: too few problems, duplicates, or rows without question or answer.
    """
    wanted = spec["num_problems"]
    if spec.get("families"):
        from mot_core.lab.families import draw_problems as draw

        families = spec["families"]
        problems = []
        for index, family in enumerate(families):
            share = wanted // len(families) + (index < wanted % len(families))
            problems += draw(family, spec["split"], share, spec["seed"])
    elif file is not None:
        problems = read_problems(Path(file), spec["split"])[:wanted]
    else:
        make = load_object(spec["import_path"], "problems.import_path")
        problems = list(make(spec["split"], wanted, spec["seed"]))[:wanted]
    _check(problems, wanted, spec["split"])
    return problems


def read_problems(path: Path, split: str) -> list[Problem]:
    """A split's problems from JSONL rows with `question`, `answer` and, if wanted, `family` and `split`.

    A row without `split` counts as train, so that no benchmark shares rows between dev and test by accident.
    """
    problems = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ProblemError(f"problems file {path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ProblemError(
                f"problems file {path}, line {number}: expected an object with question and answer, got {line[:80]!r} "
                f"({type(error).__name__}: {error})"
            ) from error
        if not str(question).strip() or not str(answer).strip():
            raise ProblemError(f"problems file {path}, line {number}: question or answer is empty")
        if row.get("split", "train") == split:
            problems.append(Problem.of(str(row.get("family", path.stem)), str(question), str(answer)))
    return problems


def _check(problems: list[Problem], wanted: int, split: str) -> None:
    if len(problems) < wanted:
        raise ProblemError(
            f"the source has {len(problems)} problems of split {split!r}, num_problems asks for {wanted}; lower it, or give "
            "more (rows of a file without a split count as train; a benchmark needs rows of split dev and test)"
        )
    seen: set[str] = set()
    for problem in problems:
        if problem.problem_id in seen:
            raise ProblemError(f"problem {problem.question!r} occurs twice; paired tests need each once")
        seen.add(problem.problem_id)
