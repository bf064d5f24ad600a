"""The account of what is in no corpus, and why: every rationale and every problem once, and the same as counts.

rejections.jsonl   a row for each: teacher, problem_id, key, filter, reason; teacher and key are empty for a problem
ledger.json        ledger: problems left after each filter, in order; selected: the problems in a corpus;
                   selected_by_teacher; num_drawn and num_by_teacher: rationales; rejections: rows by teacher and filter
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mot_core.corpus.candidates import Candidate
from mot_core.files import write_jsonl

LEDGER, REJECTIONS = "ledger.json", "rejections.jsonl"
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Rejection:
    """One rationale, or (teacher and key empty) one problem, that is in no corpus."""

    teacher: str
    problem_id: str
    key: str
    filter: str
    reason: str

    @classmethod
    def of(cls, one: Candidate, filter_name: str, reason: str) -> Rejection:
        return cls(one.teacher, one.problem_id, one.key, filter_name, reason[:_REASON_CHARACTERS])


@dataclass(frozen=True)
class Entry:
    """How many problems a filter left."""

    filter: str
    num_dropped: int
    num_left: int

    def __str__(self) -> str:
        return f"{self.filter}: −{self.num_dropped}, {self.num_left} left"


@dataclass
class Ledger:
    """What has been dropped so far."""

    num_drawn: dict[str, int]
    """Rationales by teacher."""
    entries: list[Entry] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)

    def enter(self, filter_name: str, num_before: int, num_left: int) -> None:
        self.entries.append(Entry(filter_name, num_before - num_left, num_left))

    def reject(self, rejections: Iterable[Rejection]) -> None:
        self.rejections += rejections

    def counts(self) -> dict[tuple[str, str], int]:
        """Rejections by teacher and filter, in the order in which each pair came first; problems under the empty name."""
        return dict(Counter((one.teacher, one.filter) for one in self.rejections))

    def told(self) -> str:
        """The account in a sentence, for errors."""
        told = "; ".join(map(str, self.entries))
        rationales = [f"{teacher} {name} −{n}" for (teacher, name), n in self.counts().items() if teacher]
        return f"{told}; rationales: {', '.join(rationales)}" if rationales else told

    def write(self, out_dir: Path, selected: dict[str, list[str]], num_by_teacher: dict[str, int]) -> None:
        """Both files."""
        write_jsonl(out_dir / REJECTIONS, [asdict(one) for one in self.rejections])
        document: dict[str, Any] = {
            "ledger": [asdict(entry) for entry in self.entries],
            "selected": union_of(selected.values()),
            "selected_by_teacher": selected,
            "num_drawn": self.num_drawn,
            "num_by_teacher": num_by_teacher,
            "rejections": [
                {"teacher": teacher, "filter": name, "num_rejected": number}
                for (teacher, name), number in self.counts().items()
            ],
        }
        (out_dir / LEDGER).write_text(json.dumps(document, indent=1))


def union_of(lists: Iterable[Sequence[str]]) -> list[str]:
    return sorted({item for items in lists for item in items})
