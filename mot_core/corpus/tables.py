"""Corpora as parquet in `messages` form with provenance columns; `datasets.load_dataset` reads them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mot_core.prompts import assistant_message, parse_completion, user_messages

COLUMNS = ("problem_id", "family", "question", "teacher", "completion_key", "completion_tokens", "messages")


def corpus_row(verdict: dict[str, Any], question: str, teacher: str) -> dict[str, Any]:
    """A training example from a graded rationale."""
    rationale = parse_completion(verdict["text"])
    return {
        "problem_id": verdict["problem_id"],
        "family": verdict["family"],
        "question": question,
        "teacher": teacher,
        "completion_key": verdict["key"],
        "completion_tokens": verdict["num_tokens"],
        "messages": [*user_messages(question), assistant_message(rationale)],
    }


def write_corpus(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows).select(list(COLUMNS))
    pq.write_table(table, path)


def read_corpus(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
