"""The first stage: drawing problems, from the laboratory, reasoning-gym, a table, or a function of the user's.

Invariant: what comes out is one set of distinct problems whose reference answers the grader of the step can read. A row
that cannot serve is dropped and listed with its reason when it would be trained on, and stops the run when it belongs to
a benchmark, since a benchmark with fewer problems is another benchmark. (The same problem twice with one answer is
listed once in both.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mot_core.columns import Reader, kept_by
from mot_core.errors import ProblemError
from mot_core.files import write_jsonl
from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import GradeItem, Verdict
from mot_core.problems import Problem, normal_question
from mot_core.runner import StepContext
from mot_core.sources import open_rows
from mot_core.steps import load_object
from mot_core.world import files_identity

_SHOWN = 5
# Reference answers are checked this many at a time, in order, until there are enough problems.
_CHECKED_AT_ONCE = 512
Progress = Callable[[int], None]


def draw_problems(context: StepContext) -> dict[str, Any]:
    """Runner of `problems`."""
    wanted = context.spec["num_problems"]
    drawn = problems_from(
        context.spec, context.step.locators.get("file"), num_workers=context.settings.threads,
        on_done=lambda done: context.progress(done, wanted or done, "problems"),
    )  # fmt: skip
    write_jsonl(context.work_dir / "problems.jsonl", [problem.to_json() for problem in drawn.problems])
    write_jsonl(context.work_dir / "rejected.jsonl", drawn.rejected)
    return {"num_problems": len(drawn.problems), "num_rejected": len(drawn.rejected), **drawn.counts()}


@dataclass(frozen=True)
class SourceProblem:
    """A problem that may be drawn: where it lay, and the id it had there (empty if none)."""

    problem: Problem
    source_row: str
    external_id: str = ""


@dataclass
class Drawn:
    """Problems in the source's order, and the rows that were not taken."""

    role: str
    where: str
    problems: list[Problem] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reject(
        self, source_row: str, name: str, reason: str, problem: Problem | None = None, question: str = ""
    ) -> None:
        """Take note of a row that is not taken, by which filter and why."""
        row = {"source_row": source_row, "filter": name, "reason": reason, "question": question[:200]}
        if problem is not None:
            row |= {"problem_id": problem.problem_id, "question": problem.question[:200]}
        self.rejected.append(row)

    def counts(self) -> dict[str, int]:
        return {f"num_{name}": count for name, count in Counter(row["filter"] for row in self.rejected).items()}

    def refuse_if_benchmark(self, names: set[str]) -> None:
        """Raise `ProblemError` with the first of the rows that these filters rejected, if they are a benchmark's."""
        faults = [row for row in self.rejected if row["filter"] in names]
        if self.role == "benchmark" and faults:
            shown = "".join(
                f"\n  {row['source_row']}: {row['reason']}: {row['question'][:80]!r}" for row in faults[:_SHOWN]
            )
            more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise ProblemError(
                f"{self.where}: {len(faults)} row(s) cannot serve as benchmark problems; mend or filter them:{shown}{more}"
            )


def problems_from(
    spec: Mapping[str, Any], file: str | None, *, num_workers: int = 1, on_done: Progress = lambda done: None
) -> Drawn:
    """The problems of a `problems` step's spec, each once; `file` is where its table lies here.

    Raises:
        ProblemError: too few problems, or rows that cannot serve as the step's role wants them to.
    """
    drawn = Drawn(spec["role"], _name_of(spec, file))
    candidates = list(_candidates(spec, file, drawn))
    drawn.refuse_if_benchmark({"empty", "unreadable"})
    _check_ids(candidates, drawn.where)
    with GradingPool(num_workers) as pool:
        distinct = _distinct(candidates, spec["grader"], drawn, pool)
        drawn.refuse_if_benchmark({"contradictory"})
        _take(distinct, spec["grader"], spec["num_problems"], drawn, pool, on_done)
    drawn.refuse_if_benchmark({"gold"})
    _check_number(drawn, spec["num_problems"], spec["split"])
    return drawn


def _name_of(spec: Mapping[str, Any], file: str | None) -> str:
    if spec["families"]:
        return f"families {', '.join(spec['families'])}"
    if spec.get("gym"):
        return f"gym {spec['gym']['dataset']}"
    return f"problems of {spec['import_path'] or file or spec['table']['hub']}"


# -- reading ---------------------------------------------------------------------------------------------


def _candidates(spec: Mapping[str, Any], file: str | None, drawn: Drawn) -> Iterator[SourceProblem]:
    wanted, split = spec["num_problems"], spec["split"]
    if spec["families"]:
        from mot_core.lab.families import draw_problems as draw

        families = spec["families"]
        for index, family in enumerate(families):
            share = wanted // len(families) + (index < wanted % len(families))
            for number, problem in enumerate(draw(family, split, share, spec["seed"]) if share else [], 1):
                yield SourceProblem(problem, f"{family}:{number}")
    elif spec.get("gym"):
        from mot_core.gym import draw_problems as draw_gym

        for number, problem in enumerate(draw_gym(spec["gym"], split, wanted, spec["seed"]), 1):
            yield SourceProblem(problem, f"{problem.family}:{number}")
    elif spec["table"]:
        yield from _table_candidates(spec, file, drawn)
    else:
        make = load_object(spec["import_path"], "problems.import_path")
        for number, problem in enumerate(make(split, wanted, spec["seed"]), 1):
            if not isinstance(problem, Problem):
                raise ProblemError(f"{drawn.where}: expected mot_core.problems.Problem, got {type(problem).__name__}")
            yield SourceProblem(problem, f"{split}:{number}")


def _table_candidates(spec: Mapping[str, Any], file: str | None, drawn: Drawn) -> Iterator[SourceProblem]:
    table, split = spec["table"], spec["split"]
    if file is not None and files_identity(file, drawn.where) != table["file"]:
        raise ProblemError(
            f"{drawn.where}: the file has changed since this run was planned; start the same command again"
        )
    reader = Reader.of(table)
    # Rows without a split count as train, so that no benchmark shares rows between dev and test by accident.
    by_column = spec["splits"] is None and file is not None
    default_family = table.get("format") or _family_of(file, table)
    with open_rows(table, file, _their_split(spec, file)) as rows:
        for row in kept_by(table.get("filters") or {}, rows, drawn.where):
            reader.look_for(row, ("question", "answer"))  # also in rows of other splits, so that none is called missing
            try:
                if by_column and (reader.text(row, "split") or "train") != split:
                    continue
                question, answer = reader.text(row, "question"), reader.text(row, "answer")
                family, external_id = reader.text(row, "family") or default_family, reader.text(row, "id")
            except ValueError as error:
                drawn.reject(row.place, "unreadable", str(error))
                continue
            if not question.strip() or not answer.strip():
                which = "question" if not question.strip() else "answer"
                drawn.reject(row.place, "empty", f"{which} is empty or absent", question=question)
            else:
                yield SourceProblem(Problem.of(family, question, answer), row.place, external_id)
    reader.check((("question",), ("answer",)), drawn.where)


def _their_split(spec: Mapping[str, Any], file: str | None) -> str:
    """Our split in the source's words: as `splits` says; else a file's one split, or the hub's of the same name."""
    splits: Mapping[str, str] | None = spec["splits"]
    if splits is None:
        return "train" if file is not None else str(spec["split"])
    if spec["split"] not in splits:
        raise ProblemError(
            f"splits has no entry for {spec['split']!r}; it has {', '.join(splits)}: add which of the source's rows these are"
        )
    return splits[spec["split"]]


def _family_of(file: str | None, table: Mapping[str, Any]) -> str:
    if file is None:
        return str(table["hub"]).rpartition("/")[2]
    return Path(file.removesuffix(".gz")).stem.replace("*", "").strip("-_.") or "problems"


# -- choosing --------------------------------------------------------------------------------------------


def _check_ids(candidates: list[SourceProblem], where: str) -> None:
    """Raise `ProblemError` if the source gives one id to two questions."""
    named: dict[str, SourceProblem] = {}
    for candidate in candidates:
        first = named.setdefault(candidate.external_id, candidate)
        if candidate.external_id and first.problem.question != candidate.problem.question:
            if normal_question(first.problem.question) == normal_question(candidate.problem.question):
                continue
            raise ProblemError(
                f"{where}: the id {candidate.external_id!r} names two questions, in rows {first.source_row} and "
                f"{candidate.source_row}: {first.problem.question[:80]!r} and {candidate.problem.question[:80]!r}; "
                "give each its own, or map id to another column"
            )


def _distinct(candidates: list[SourceProblem], grader: str, drawn: Drawn, pool: GradingPool) -> list[SourceProblem]:
    """Each question once; none whose rows give different answers."""
    groups: dict[str, list[SourceProblem]] = {}
    for candidate in candidates:
        groups.setdefault(normal_question(candidate.problem.question), []).append(candidate)
    contradictory = _contradictions([group for group in groups.values() if len(group) > 1], grader, pool)
    distinct = []
    for group in groups.values():
        first = group[0]
        if id(group) in contradictory:
            places = ", ".join(candidate.source_row for candidate in group[:_SHOWN])
            for candidate in group:
                drawn.reject(
                    candidate.source_row, "contradictory", f"contradictory answers in rows {places}", candidate.problem
                )
            continue
        distinct.append(first)
        for candidate in group[1:]:
            same = (
                "the same question"
                if candidate.problem.question == first.problem.question
                else "the same question, written otherwise,"
            )
            drawn.reject(candidate.source_row, "duplicate", f"{same} as in row {first.source_row}", candidate.problem)
    return distinct


def _contradictions(groups: list[list[SourceProblem]], grader: str, pool: GradingPool) -> set[int]:
    """Which groups (by `id`) hold answers that the grader does not take for the same as the first."""
    asked = [
        (id(group), GradeItem(grader, first.family, first.answer, f"\\boxed{{{answer}}}"))
        for group in groups
        for first in [group[0].problem]
        for answer in sorted({candidate.problem.answer.strip() for candidate in group} - {first.answer.strip()})
    ]
    graded = pool.grade([item for _, item in asked])
    return {group for (group, _), one in zip(asked, graded, strict=True) if one.verdict is not Verdict.CORRECT}


def _take(
    candidates: list[SourceProblem], grader: str, wanted: int | None, drawn: Drawn, pool: GradingPool, on_done: Progress
) -> None:
    """The first `wanted` candidates whose reference answers the grader can read. The others are not looked at."""
    start = 0
    while start < len(candidates) and (wanted is None or len(drawn.problems) < wanted):
        missing = _CHECKED_AT_ONCE if wanted is None else min(_CHECKED_AT_ONCE, wanted - len(drawn.problems))
        batch = candidates[start : start + missing]
        start += len(batch)
        golds = [(grader, candidate.problem.family, candidate.problem.answer) for candidate in batch]
        for candidate, fault in zip(batch, pool.check_golds(golds), strict=True):
            if fault is None:
                drawn.problems.append(candidate.problem)
            else:
                drawn.reject(candidate.source_row, "gold", fault, candidate.problem)
        on_done(len(drawn.problems))


def _check_number(drawn: Drawn, wanted: int | None, split: str) -> None:
    if drawn.problems and len(drawn.problems) >= (wanted or 1):
        return
    dropped = ", ".join(f"{name.removeprefix('num_')} {count}" for name, count in drawn.counts().items())
    last = f", the last: {drawn.rejected[-1]['reason']}" if dropped else ""
    raise ProblemError(
        f"{drawn.where}: the source has {len(drawn.problems)} problems of split {split!r}, num_problems asks for "
        f"{wanted or 'all, and at least 1'}{f' (dropped: {dropped}{last})' if dropped else ''}; lower it, or give "
        "more (rows of a file without a split count as train; a benchmark needs rows of split dev and test, or splits)"
    )
