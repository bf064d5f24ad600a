"""One graded rationale as filters and choice see it: without its text, which stays in its file until it is written.

Invariant: a candidate is a function of its row alone. A text is read again where it is needed and is never kept: those
of one teacher may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.files import lines_of
from mot_core.grading.verdicts import Verdict

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rationale that may enter its teacher's corpus."""

    teacher: str
    key: str
    problem_id: str
    family: str
    sample_index: int
    verdict: Verdict
    extracted: str | None
    num_tokens: int | None
    finish_reason: str
    reason: str
    digest: bytes
    """Of the text: two rationales with one digest are one."""
    path: Path
    offset: int
    size: int

    @classmethod
    def of(cls, teacher: str, row: Mapping[str, Any], path: Path, offset: int, size: int) -> Candidate:
        """The candidate of a verdict's row, which lies at `offset` in its file."""
        return cls(
            teacher, row["key"], row["problem_id"], row["family"], int(row["sample_index"]), Verdict(row["verdict"]),
            row["extracted"], row["num_tokens"], row["finish_reason"], row["reason"],
            hashlib.sha256(text_of(row).encode()).digest(), path, offset, size,
        )  # fmt: skip

    def text(self) -> str:
        """What the teacher wrote, read again from its file."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return text_of(json.loads(file.read(self.size)))


def read_candidates(teacher: str, path: Path) -> list[Candidate]:
    """Every rationale of a teacher, in the order of its verdicts."""
    return [Candidate.of(teacher, json.loads(line), path, offset, len(line)) for offset, line in lines_of(path)]


def text_of(row: Mapping[str, Any]) -> str:
    """What a teacher wrote: `completion` in the files of the stand-alone commands, `text` in a store."""
    text: str = row["completion"] if "completion" in row else row["text"]
    return storable(text)


def storable(text: str) -> str:
    """Text without half surrogate pairs, which JSON can hold and neither UTF-8 nor parquet."""
    return text.encode("utf-8", "replace").decode()
