"""Corpora from files of graded rows, without a store: the same filters, modes and outputs as in an experiment.

A graded file is JSON lines, one a rationale, as `mot grade` writes them:

| key | meaning |
| --- | --- |
| id | of the rationale, text or integer, once in a file |
| completion (or text) | what the teacher wrote |
| verdict | correct, incorrect, unparseable, truncated or grader_failed |
| question | what was asked; not needed where a problems file has it |
| problem_id | which problem; absent: it follows from family and question, so equal questions are one problem |
| gold, family, extracted, finish_reason, reason | text; each may be absent |
| sample_index | which sample of its problem; absent: the rows of a problem count from 0 in the file's order |
| num_tokens | of the completion; needed for the choices shortest and longest alone |

A problems file is JSON lines with problem_id (or id) and question, and may have answer (or gold) and family. Invariant:
every row is read before anything is built, and the directory appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mot_core.corpus.build import Builder, Inputs, check_corpus_names
from mot_core.corpus.candidates import Candidate, Progress, storable
from mot_core.corpus.card import CARD
from mot_core.corpus.filters import pass_rates
from mot_core.corpus.ledger import LEDGER, REJECTIONS
from mot_core.corpus.student import Student
from mot_core.corpus.tables import COVERAGE
from mot_core.errors import CorpusError
from mot_core.files import numbered_rows, whole_directory
from mot_core.grading.verdicts import Verdict
from mot_core.problems import problem_id_of
from mot_core.spec import Corpus, Name, local_directory

_ROW = "id, completion, verdict, and question unless a problems file has it"


def build_from_files(
    graded: Mapping[str, Path], out_dir: Path, corpus: Corpus, *, problems: Path | None = None,
    student: str | None = None, attempts: Path | None = None, teacher_licenses: Mapping[str, str | None] | None = None,
    problems_license: str | None = None, progress: Progress = lambda done, total, unit: None,
) -> dict[str, Any]:  # fmt: skip
    """Build one corpus a teacher into a new or empty directory, or one that this function made; the counts.

    `graded` are files by teacher; `student` a model (lab:NAME, directory, hub id); `attempts` the graded file of the
    untrained student's own answers, for `corpus.difficulty`.

    Raises:
        CorpusError: a row that cannot serve, with file and line; settings that do not fit; an empty corpus.
    """
    _check_settings(graded, corpus, student, attempts)
    out_dir = out_dir.expanduser().resolve()
    made_before = _require_free(out_dir)
    known = _Problems()
    if problems is not None:
        known.read(problems)
    needs_tokens = corpus.choice in ("shortest", "longest")
    candidates = {teacher: _read_graded(teacher, path, known, needs_tokens) for teacher, path in graded.items()}
    tried = _read_graded("the untrained student", attempts, known, False) if attempts is not None else []
    inputs = Inputs(
        known.rows, candidates, teacher_licenses or {}, problems_license,
        pass_rates((one.problem_id, one.verdict, one.finish_reason) for one in tried),
    )  # fmt: skip
    builder = Builder(inputs, corpus, _student(student), progress)
    with whole_directory(out_dir, replaces=made_before) as unfinished:
        return builder.build(unfinished)


def _check_settings(graded: Mapping[str, Path], corpus: Corpus, student: str | None, attempts: Path | None) -> None:
    if not graded:
        raise CorpusError("no graded file was given; expected at least one, by teacher")
    for teacher in graded:
        try:
            TypeAdapter(Name).validate_python(teacher)
        except ValidationError as error:
            raise CorpusError(
                f"teacher {teacher!r}: expected letters, digits and . _ - only, since a file is named after it"
            ) from error
    check_corpus_names(list(graded))
    unknown = set(corpus.match_over or ()) - set(graded)
    if unknown:
        raise CorpusError(
            f"match_over names {sorted(unknown)}; expected names among the graded files': {sorted(graded)}"
        )
    if student is None and (corpus.choice == "likeliest" or corpus.max_rationale_tokens is not None):
        what = "choice likeliest" if corpus.choice == "likeliest" else "max_rationale_tokens"
        raise CorpusError(f"{what} is measured with the student, and none was given; give a model as student")
    if (corpus.difficulty is None) != (attempts is None):
        raise CorpusError(
            "difficulty is the pass rate of the untrained student: give the graded file of its own answers together with "
            "the setting difficulty, or neither"
        )


def _student(model: str | None) -> Student | None:
    if model is None:
        return None
    try:
        directory = local_directory(model)
    except ValueError as error:
        raise CorpusError(f"student: {error}") from error
    return Student(model if directory is None else str(directory), None)


class _Problems:
    """The problems that rows name; fixed once a problems file was read."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.file: Path | None = None

    def read(self, path: Path) -> None:
        for number, row, _, _ in numbered_rows(path, CorpusError):
            where = f"{path}, line {number}"
            problem_id = str(_text(row, "problem_id", where, of_id=True) or _text(row, "id", where, of_id=True) or "")
            question, family = _text(row, "question", where), _text(row, "family", where) or ""
            if not question:
                raise CorpusError(f"{where}: question is missing; expected problem_id and question")
            self.add(
                problem_id or problem_id_of(family or "problem", question), question, family, _gold(row, where), where
            )
        self.file = path

    def of_row(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The problem of a graded row, which has to agree with what is known of it."""
        question, family = _text(row, "question", where), _text(row, "family", where) or ""
        problem_id = _text(row, "problem_id", where, of_id=True)
        if not problem_id and not question:
            raise CorpusError(f"{where}: question and problem_id are missing; expected {_ROW}")
        problem_id = problem_id or problem_id_of(family or "problem", question or "")
        if problem_id in self.rows:
            self.check(self.rows[problem_id], question, _text(row, "gold", where), where)
        elif self.file is not None:
            raise CorpusError(
                f"{where}: problem {problem_id!r} is not in {self.file}; expected one of its {len(self.rows)}"
            )
        elif not question:
            raise CorpusError(f"{where}: question is missing; expected {_ROW}")
        else:
            self.add(problem_id, question, family, _text(row, "gold", where), where)
        return self.rows[problem_id]

    def add(self, problem_id: str, question: str, family: str, gold: str | None, where: str) -> None:
        if problem_id in self.rows:
            raise CorpusError(f"{where}: problem {problem_id!r} occurs already; expected each problem once")
        self.rows[problem_id] = {"problem_id": problem_id, "family": family, "question": question, "answer": gold}

    def check(self, known: dict[str, Any], question: str | None, gold: str | None, where: str) -> None:
        for name, given, held in (("question", question, known["question"]), ("gold", gold, known["answer"])):
            if given is not None and held is not None and given != held:
                raise CorpusError(
                    f"{where}: its {name} is {given[:80]!r}, but problem {known['problem_id']!r} has {held[:80]!r} "
                    "elsewhere; one problem has one question and one reference answer in all files"
                )
        if known["answer"] is None:
            known["answer"] = gold


def _read_graded(teacher: str, path: Path, problems: _Problems, needs_tokens: bool) -> list[Candidate]:
    candidates = []
    samples: Counter[str] = Counter()
    seen: dict[Any, int] = {}
    for number, row, offset, size in numbered_rows(path, CorpusError):
        where = f"{path}, line {number}"
        problem = problems.of_row(row, where)
        verdict_row = _verdict_row(row, problem, samples[problem["problem_id"]], needs_tokens, where)
        samples[problem["problem_id"]] += 1
        for place in (("id", verdict_row["key"]), (verdict_row["problem_id"], verdict_row["sample_index"])):
            if place in seen:
                what = f"id {place[1]!r}" if place[0] == "id" else f"sample {place[1]} of problem {place[0]!r}"
                raise CorpusError(f"{where}: {what} occurs already in line {seen[place]}; expected each once")
            seen[place] = number
        candidates.append(Candidate.of(teacher, verdict_row, path, offset, size))
    if not candidates:
        raise CorpusError(f"{path}: no rows; expected graded rationales of {teacher}")
    return candidates


def _verdict_row(
    row: Mapping[str, Any], problem: Mapping[str, Any], num_earlier: int, needs_tokens: bool, where: str
) -> dict[str, Any]:
    """A graded row in the form of a store's verdicts."""
    key = _text(row, "id", where, of_id=True)
    text = _text(row, "completion", where) if "completion" in row else _text(row, "text", where)
    verdict = _text(row, "verdict", where)
    missing = [name for name, value in (("id", key), ("completion", text), ("verdict", verdict)) if value is None]
    if missing:
        raise CorpusError(f"{where}: {', '.join(missing)} missing; expected {_ROW}")
    if verdict not in list(Verdict):
        raise CorpusError(f"{where}: verdict is {verdict!r}; expected one of {', '.join(Verdict)}; run mot grade")
    num_tokens = _number(row, "num_tokens", where)
    if needs_tokens and num_tokens is None:
        raise CorpusError(f"{where}: num_tokens is missing; the choices shortest and longest need it")
    sample_index = _number(row, "sample_index", where)
    return {
        "key": key, "problem_id": problem["problem_id"], "family": problem["family"],
        "sample_index": num_earlier if sample_index is None else sample_index, "verdict": verdict,
        "extracted": _text(row, "extracted", where), "num_tokens": num_tokens, "text": text,
        "finish_reason": _text(row, "finish_reason", where) or "stop", "reason": _text(row, "reason", where) or "",
    }  # fmt: skip


def _text(row: Mapping[str, Any], name: str, where: str, of_id: bool = False) -> str | None:
    """A row's text, None if it is absent; an id may be an integer."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        return storable(value)
    if of_id and type(value) is int:
        return str(value)
    raise CorpusError(f"{where}: {name} is a {type(value).__name__}; expected text")


def _number(row: Mapping[str, Any], name: str, where: str) -> int | None:
    value = row.get(name)
    if value is None or (type(value) is int and value >= 0):
        return value
    raise CorpusError(f"{where}: {name} is {value!r}; expected a whole number from 0, or leave it out")


def _gold(row: Mapping[str, Any], where: str) -> str | None:
    return _text(row, "gold", where) if "gold" in row else _text(row, "answer", where)


def _require_free(out_dir: Path) -> bool:
    """Whether a directory of ours is to be replaced.

    Raises:
        CorpusError: something else is there.
    """
    if not out_dir.exists():
        return False
    if not out_dir.is_dir():
        raise CorpusError(f"{out_dir} is a file; give a new or empty directory")
    found = {path.name for path in out_dir.iterdir()}
    if not found:
        return False
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        teachers = json.loads((out_dir / LEDGER).read_text())["num_by_teacher"]
        ours = {CARD, LEDGER, REJECTIONS, *(f"{name}.parquet" for name in (COVERAGE, *teachers))}
        if found == ours:
            return True
    raise CorpusError(
        f"{out_dir} holds files that were not made here, e.g. {min(found)!r}; give a new or empty directory"
    )
