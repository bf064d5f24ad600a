"""Corpora as parquet in `messages` form with provenance columns; `datasets.load_dataset` reads them as they are.

Invariant: every corpus has the same columns and types, whatever is missing in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mot_core.prompts import assistant_message, user_messages
from mot_core.reasoning import parse_completion

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()), ("family", pa.string()), ("question", pa.string()), ("teacher", pa.string()),
        ("completion_key", pa.string()), ("completion_tokens", pa.int64()), ("messages", pa.list_(_MESSAGE)),
        ("sample_index", pa.int64()), ("verdict", pa.string()), ("extracted", pa.string()), ("gold", pa.string()),
        ("student_tokens", pa.int64()), ("teacher_license", pa.string()), ("problems_license", pa.string()),
    ]
)  # fmt: skip
_COVERAGE_SCHEMA = pa.schema(
    [
        ("teacher", pa.string()), ("problem_id", pa.string()), ("family", pa.string()), ("num_samples", pa.int64()),
        ("num_correct", pa.int64()), ("num_kept", pa.int64()), ("selected", pa.bool_()),
    ]
)  # fmt: skip

COLUMNS: dict[str, str] = {
    "problem_id": "the problem's id, the same in every configuration",
    "family": "the kind of problem",
    "question": "what was asked",
    "teacher": "who answered",
    "completion_key": "names the request that this answers",
    "completion_tokens": "the answer's length in the teacher's tokens",
    "messages": "the question, then reasoning (`reasoning_content`) and answer (`content`)",
    "sample_index": "which of the teacher's samples of this problem",
    "verdict": "what the grader said",
    "extracted": "the answer that the grader found",
    "gold": "the reference answer",
    "student_tokens": "the completion's length in the student's tokens, where it was measured",
    "teacher_license": "of the teacher, as stated; empty where nothing was stated",
    "problems_license": "of the problems, likewise",
}
COVERAGE = "coverage"


def example_messages(question: str, text: str) -> list[dict[str, str]]:
    """What a student is trained on, from what a teacher was asked and wrote."""
    return [*user_messages(question), assistant_message(parse_completion(text))]


def write_corpus(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)


def read_corpus(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def write_coverage(path: Path, rows: list[dict[str, Any]]) -> None:
    """How often each teacher was right on each problem, and whether its corpus holds it."""
    pq.write_table(pa.Table.from_pylist(rows, schema=_COVERAGE_SCHEMA), path)
