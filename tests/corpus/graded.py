"""Graded rationales made by hand, and the corpora that are built from them, without a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mot_core.corpus.build import Builder, Inputs
from mot_core.corpus.candidates import Candidate, read_candidates
from mot_core.corpus.student import Student
from mot_core.corpus.tables import read_corpus
from mot_core.files import read_jsonl, write_jsonl
from mot_core.spec import Corpus

LETTERS = {"c": "correct", "i": "incorrect", "u": "unparseable", "t": "truncated", "g": "grader_failed"}


def row(teacher: str, problem_id: str, index: int, verdict: str = "correct", **changes: Any) -> dict[str, Any]:
    """A verdict's row; its text is well formed and its own unless it is changed."""
    return {
        "key": f"{teacher}-{problem_id}-{index}", "problem_id": problem_id, "sample_index": index, "seed": 1,
        "family": "sums", "text": f"<think>{teacher} {index}</think>\\boxed{{{problem_id}}}", "num_tokens": 20 - index,
        "finish_reason": "stop", "reason": "", "verdict": verdict, "extracted": problem_id, **changes,
    }  # fmt: skip


def rows(teacher: str, verdicts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows by problem, a letter a sample: `{"p0": "ic"}` is a wrong and then a right one."""
    return [
        row(teacher, problem_id, index, LETTERS[letter])
        for problem_id, letters in verdicts.items()
        for index, letter in enumerate(letters)
    ]


def candidates_of(path: Path, teacher: str, rows_: Sequence[dict[str, Any]]) -> list[Candidate]:
    path.mkdir(parents=True, exist_ok=True)
    write_jsonl(path / f"{teacher}.jsonl", list(rows_))
    return read_candidates(teacher, path / f"{teacher}.jsonl")


class Built:
    """Corpora built from rows by teacher into a new directory."""

    def __init__(
        self, root: Path, graded: Mapping[str, Sequence[dict[str, Any]]], *, student: Student | None = None,
        pass_rates: Mapping[str, float] | None = None, licenses: Mapping[str, str | None] | None = None,
        problems_license: str | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        ids = dict.fromkeys(one["problem_id"] for rows_ in graded.values() for one in rows_)
        self.problems = {p: {"family": "sums", "question": f"what is {p}", "answer": p} for p in ids}
        self.path = root / f"built-{len(list(root.iterdir()))}"
        drawn = {teacher: candidates_of(root / f"in-{self.path.name}", teacher, r) for teacher, r in graded.items()}
        self.keys = [(one.teacher, one.key) for ones in drawn.values() for one in ones]
        self.path.mkdir()
        inputs = Inputs(self.problems, drawn, licenses or {}, problems_license, pass_rates)
        self.builder = Builder(inputs, Corpus(**settings), student, lambda done, total, unit: None)
        self.counts = self.builder.build(self.path)

    def corpus(self, teacher: str) -> list[dict[str, Any]]:
        return read_corpus(self.path / f"{teacher}.parquet")

    def chosen(self, teacher: str) -> list[str]:
        """What is in a corpus, without the teacher's name: `p0-1` is sample 1 of p0."""
        return [one["completion_key"].removeprefix(f"{teacher}-") for one in self.corpus(teacher)]

    def rejected(self) -> list[tuple[str, str, str]]:
        """`(key, or problem for a problem's row, filter, reason)`."""
        return [
            (one["key"] or one["problem_id"], one["filter"], one["reason"])
            for one in read_jsonl(self.path / "rejections.jsonl")
        ]

    def fell(self, key: str) -> tuple[str, str]:
        """Filter and reason of the only row about a rationale or a problem."""
        [found] = [(name, reason) for which, name, reason in self.rejected() if which == key]
        return found
