"""Grade a file of answers: JSON lines in, the same lines with verdicts out, in order.

A row has `id`, `answer_type` (a grader's name, or package.module:function), `gold` and `completion`; it may have
`finish_reason` (stop) and `family`. Invariant: every row is read before any is graded, so a bad file costs no grading;
OUT appears whole or not at all, since it is written beside itself and renamed. A killed call starts over.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mot_core.errors import GradingError, SpecError
from mot_core.files import numbered_rows, whole_file
from mot_core.grading.pool import MEMORY_BYTES, SECONDS, GradingPool
from mot_core.grading.verdicts import GRADERS, GradeItem
from mot_core.steps import check_import_path

_KEYS = ("id", "answer_type", "gold", "completion")
_ADDED = ("verdict", "extracted", "seconds", "detail")
# Rows in memory at once: completions of reasoning models have some 100 KB.
_BATCH = 1024

Progress = Callable[[float, float, str], None]


def grade_file(
    in_path: Path, out_path: Path, *, num_workers: int, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> dict[str, int]:  # fmt: skip
    """Write each row of a file with `verdict`, `extracted`, `seconds` and `detail`; the number of rows by verdict.

    Raises:
        GradingError: a row that cannot be graded, with its line, before anything is graded.
    """
    total = check_rows(in_path)
    if out_path.resolve() == in_path.resolve():
        raise GradingError(f"{out_path} is both input and output; give another file to write")
    counts: Counter[str] = Counter()
    with (
        whole_file(out_path) as unfinished,
        unfinished.open("wb") as out,
        GradingPool(num_workers, seconds, memory_bytes) as pool,
    ):
        rows = (row for _, row, _, _ in numbered_rows(in_path, GradingError))
        while batch := list(itertools.islice(rows, _BATCH)):
            before = sum(counts.values())
            told = None if progress is None else _told(progress, before, total)
            for row, graded in zip(batch, pool.grade(list(map(_item, batch)), told), strict=True):
                added = (graded.verdict.value, graded.extracted, graded.seconds, graded.detail)
                out.write(_line({**row, **dict(zip(_ADDED, added, strict=True))}))
                counts[graded.verdict.value] += 1
    return dict(counts)


def check_rows(path: Path) -> int:
    """The number of rows of a file that can be graded.

    Raises:
        GradingError: the first row that cannot, with its line and what was expected.
    """
    seen: dict[str, int] = {}
    known: set[str] = set(GRADERS)
    for number, row, _, _ in numbered_rows(path, GradingError):
        where = f"{path}, line {number}"
        missing = [key for key in _KEYS if key not in row]
        if missing:
            raise GradingError(f"{where}: {', '.join(missing)} missing; expected the keys {', '.join(_KEYS)}")
        for key in _KEYS:
            if not isinstance(row[key], str) and not (key == "id" and type(row[key]) is int):
                raise GradingError(f"{where}: {key} is a {type(row[key]).__name__}; expected text")
        for key in ("finish_reason", "family"):
            if not isinstance(row.get(key, ""), str):
                raise GradingError(f"{where}: {key} is a {type(row[key]).__name__}; expected text, or leave it out")
        _check_answer_type(row["answer_type"], known, where)
        identity = json.dumps(row["id"])
        if identity in seen:
            raise GradingError(f"{where}: id {row['id']!r} occurs already in line {seen[identity]}; ids must differ")
        seen[identity] = number
    return len(seen)


def _check_answer_type(answer_type: str, known: set[str], where: str) -> None:
    if answer_type in known:
        return
    if ":" not in answer_type:
        raise GradingError(
            f"{where}: answer_type {answer_type!r} is not known; expected {', '.join(GRADERS)}, "
            "or package.module:function for one of your own"
        )
    try:
        check_import_path(answer_type, f"{where}: answer_type")
    except SpecError as error:
        raise GradingError(str(error)) from error
    known.add(answer_type)


def _item(row: dict[str, Any]) -> GradeItem:
    return GradeItem(
        row["answer_type"], row.get("family", ""), row["gold"], row["completion"], row.get("finish_reason", "stop")
    )


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and UTF-8 cannot
        return json.dumps(row).encode() + b"\n"


def _told(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total, "answers")
