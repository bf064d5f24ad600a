"""What probes publish, read back as rows. Imports no torch, so that flows and reports can read them.

Invariant: names of students and directions come from the step as it is asked for now, since they are not part of what
was computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mot_core.files import read_jsonl
from mot_core.steps import Step

CONFIDENCE, LANDSCAPE = "confidence.jsonl", "landscape.jsonl"
MEASURES = ("mean_log_prob", "mean_confidence", "mean_entropy")

Rows = list[dict[str, Any]]
_DIRECTIONS = ("direction", "x_direction", "y_direction")


def confidence_rows(directory: str | Path, step: Step) -> Rows:
    """A row a teacher and class of token: `student`, `teacher`, `class`, `num_tokens` and the means over those tokens."""
    return pooled(confidence_rows_by_problem(directory, step), ("student", "teacher", "class"))


def confidence_rows_by_problem(directory: str | Path, step: Step) -> Rows:
    """The same for each `problem_id`, for intervals over problems; without the classes of which it has no token."""
    return [{"student": step.facts["student"], **row} for row in read_jsonl(Path(directory) / CONFIDENCE)]


def landscape_rows(directory: str | Path, step: Step) -> Rows:
    """A row a measured value; `measure` says of what, and with it which columns a row has:

    | measure | columns |
    | --- | --- |
    | centre | loss, num_examples, num_tokens, weight_norm, filter_norm |
    | direction | direction, kind, length, relative_length |
    | line | line, direction, kind, x, loss |
    | plane | plane, x_direction, y_direction, x, y, loss |
    | mark | plane, x_direction, y_direction, direction (a student's), x, y, off_plane |
    | rise | distance, draw, rise |
    | sharpness | distance, num_directions, mean_rise, standard_error |
    """
    names = list(step.facts["directions"])
    rows = []
    for row in read_jsonl(Path(directory) / LANDSCAPE):
        named = {key: names[row[key]] for key in _DIRECTIONS if key in row}
        rows.append({"student": step.facts["student"], **row, **named})
    return rows


def pooled(rows: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> Rows:
    """Confidence rows summed up over everything but `keys`: means over tokens, in the order of appearance."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    made = []
    for values, own in groups.items():
        num_tokens = sum(row["num_tokens"] for row in own)
        means = {name: sum(row["num_tokens"] * row[name] for row in own) / num_tokens for name in MEASURES}
        made.append({**dict(zip(keys, values, strict=True)), "num_tokens": num_tokens, **means})
    return made
