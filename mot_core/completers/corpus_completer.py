"""A teacher whose rationales exist already: rows of a table, found by their question.

Invariant: nothing is generated and nothing is guessed. A request is answered by the row of its problem (by id where one
is mapped, else by the question's normal form) and of its sample index: the row's own where one is mapped or, for
`nemo-skills`, in the file's name; else the place among the question's rows in the table's order. A request without a
row is `absent`, which is counted and is no failure.

A completion is the row's text in canonical form. `num_tokens` is the row's own number where one is mapped; without one
it is the number of words between white space, which is fewer than any tokenizer's, and `facts` says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mot_core.columns import Reader, kept_by
from mot_core.completers.base import Accept, Completion, Request, Source
from mot_core.errors import ProblemError
from mot_core.formats import FORMATS, answered_turn, as_text, asked_turn
from mot_core.identity import fingerprint
from mot_core.problems import normal_question
from mot_core.reasoning import canonical_text, from_parts, parse_completion
from mot_core.sources import Row, Rows, open_rows
from mot_core.spec import Rationales
from mot_core.world import rationales_identity

_NAMING = ("question", "id", "messages")
_TELLING = ("rationale", "reasoning", "response", "messages")
_GROUP = 256
_SEED_FILE = re.compile(r"output-rs(\d+)(?:_chunk_\d+)?\.jsonl(?:\.gz)?$")
log = logging.getLogger("mot.corpus")


@dataclass(frozen=True)
class Found:
    """A row's rationale: its question as it is written there, its canonical text, and how it ended."""

    question: str
    text: str
    num_tokens: int
    finish_reason: str


class CorpusCompleter:
    """Answers requests from a `Rationales` table."""

    batched: ClassVar[bool] = False

    def __init__(self, source: Source) -> None:
        self.source = source
        self._facts: dict[str, Any] = {}

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        """Accept one completion a request.

        Raises:
            ProblemError: a table that cannot be read, has changed since the plan, or lacks a column.
        """
        settings = dict(self.source.settings)
        _refuse_changed(settings)
        table: RationaleTable = self.source.load(
            ("corpus", fingerprint(settings)), lambda: RationaleTable.open(settings)
        )
        places = [table.place_of(request) for request in requests]
        num_matched = sum(place is not None for place in places)
        self._facts = {**table.facts(), "num_asked": len(requests), "num_matched": num_matched}
        if not num_matched:
            log.warning(
                "%s: none of %d requests has a row; do its questions come from another data set?",
                table.name,
                len(requests),
            )
        for start in range(0, len(requests), _GROUP):
            group = [
                _completion(request, table.read(place) if place is not None else None, table.name)
                for request, place in zip(requests[start : start + _GROUP], places[start : start + _GROUP], strict=True)
            ]
            accept(group)
            progress(sum(completion.num_tokens for completion in group))

    def facts(self) -> dict[str, Any]:
        """The table, its license as its format states it and what is unverified in that, and how many of the last call's requests had a row."""
        return self._facts


def _refuse_changed(settings: dict[str, Any]) -> None:
    """Rows are kept under what the table was when the run was planned: another content must not get in there."""
    planned = settings.pop("identity")
    if rationales_identity(Rationales(**settings), "rationales") != planned:
        raise ProblemError(
            f"rationales: {settings['file']} has changed since this run was planned; run the same command again"
        )


def _completion(request: Request, found: Found | None, name: str) -> Completion:
    if found is None:
        return Completion.of(request, "", 0, "absent", reason=f"no row of {name} for this question and sample index")
    return Completion.of(request, found.text, found.num_tokens, found.finish_reason, prompt=found.question)


@dataclass
class RationaleTable:
    """A table's rows by question; only places are held, texts are read when asked for."""

    name: str
    settings: Mapping[str, Any]
    rows: Rows
    reader: Reader
    by_id: dict[str, dict[int, str]] = field(default_factory=dict)
    by_question: dict[str, dict[int, str]] = field(default_factory=dict)
    num_rows: int = 0
    num_duplicates: int = 0
    num_unreadable: int = 0

    @classmethod
    def open(cls, settings: Mapping[str, Any]) -> RationaleTable:
        """The table that a `Rationales` spec describes, indexed.

        Raises:
            ProblemError: a table that cannot be read, or has no question or no rationale.
        """
        file = settings.get("file")
        name = Path(file).name if file else str(settings["hub"])
        reader = Reader.of(settings)
        table = cls(name, settings, open_rows(settings, file, settings["split"]), reader)
        try:
            table._index()
        except BaseException:
            table.close()
            raise
        return table

    def _index(self) -> None:
        seen: set[tuple[str, str]] = set()
        where = f"rationales of {self.name}"
        for row in kept_by(self.settings.get("filters") or {}, self.rows, where):
            self.num_rows += 1
            self.reader.look_for(row, (*_NAMING, *_TELLING))
            try:
                parts, question = self._parts(row), normal_question(self._question(row))
                external_id, index = self.reader.text(row, "id"), self._sample_index(row)
                self._num_tokens(row)
            except ValueError as error:
                if self.num_unreadable == 0:
                    log.warning("%s cannot be read: %s; further such rows are only counted", row.place, error)
                self.num_unreadable += 1
                continue
            # One text twice is one sample; so are two texts of one sample index, of which the first counts.
            key = (question or external_id, fingerprint(parts) if index is None else str(index))
            if key in seen:
                self.num_duplicates += 1
                continue
            seen.add(key)
            for held, name in ((self.by_id, external_id), (self.by_question, question)):
                if name:
                    samples = held.setdefault(name, {})
                    samples.setdefault(len(samples) if index is None else index, row.place)
        self.reader.check((_NAMING, _TELLING), where)
        if not seen:
            raise ProblemError(f"{where}: none of its {self.num_rows} rows holds a rationale")

    def place_of(self, request: Request) -> str | None:
        """Where a request's row lies; None if there is none."""
        samples = self.by_id.get(request.problem_id)
        if samples is None:
            samples = self.by_question.get(normal_question(request.question), {})
        return samples.get(request.sample_index)

    def read(self, place: str) -> Found:
        """The rationale at a place that `place_of` gave."""
        return self._read(self.rows.at(place))

    def _read(self, row: Row) -> Found:
        reasoning, content = self._parts(row)
        rationale = from_parts(reasoning, content) if reasoning.strip() else parse_completion(content)
        cut = rationale.ended == "truncated" or self.reader.text(row, "finish_reason") == "length"
        text, num_tokens = canonical_text(rationale), self._num_tokens(row)
        words = len(text.split())
        return Found(
            self._question(row), text, words if num_tokens is None else num_tokens, "length" if cut else "stop"
        )

    def _question(self, row: Row) -> str:
        turns = self.reader.cell(row, "messages")
        return self.reader.text(row, "question") or (asked_turn(turns) if turns is not None else "")

    def _parts(self, row: Row) -> tuple[str, str]:
        """Reasoning and content as they are written; reasoning is empty where one text holds both."""
        reasoning = self.reader.text(row, "reasoning")
        content = self.reader.text(row, "response") or self.reader.text(row, "rationale")
        turns = self.reader.cell(row, "messages")
        if not reasoning and not content and turns is not None:
            reasoning, content = answered_turn(turns)
        if not (reasoning.strip() or content.strip()):
            raise ValueError("it holds no rationale")
        return reasoning, content

    def _num_tokens(self, row: Row) -> int | None:
        counted = self.reader.text(row, "num_tokens")
        return int(float(counted)) if counted else None

    def _sample_index(self, row: Row) -> int | None:
        given = self.reader.cell(row, "sample_index")
        if given is not None:
            return int(float(as_text(given)))
        seed = _SEED_FILE.search(row.file) if self.settings.get("format") == "nemo-skills" else None
        return int(seed[1]) if seed else None

    def facts(self) -> dict[str, Any]:
        """What answered: no path, since facts are published."""
        name = self.settings.get("format")
        return {
            "engine": "corpus", "source": self.name, "revision": self.settings.get("revision"), "format": name,
            "license": FORMATS[name].license if name else None,
            "unverified": FORMATS[name].unverified if name else "", "num_rows": self.num_rows,
            "num_questions": len(self.by_question) or len(self.by_id),
            "max_samples": max(map(len, (self.by_question or self.by_id).values())), "num_duplicates": self.num_duplicates,
            "num_unreadable": self.num_unreadable,
            "tokens": "the rows' own" if "num_tokens" in self.reader.found else "words between white space",
        }  # fmt: skip

    def close(self) -> None:
        self.rows.close()
