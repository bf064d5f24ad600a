"""The journal: every completion that was ever written, kept so that none is asked for twice.

    STORE/requests/<scope>/scope.json    who was asked, and how
    STORE/requests/<scope>/rows.jsonl    append-only: a completion a line
    STORE/requests/<scope>/engines.jsonl engines and their settings, by the id that rows carry

A scope is a model under one sampling by one completer; a request's key holds the rest. Journals carry no version of
this program's algorithms: they outlive its upgrades. Invariant: rows are appended in groups, a group is one write, and
only whole groups count. A row's `left` says how many rows of its group follow, so a torn tail shows and is cut off.
Only the lock's holder appends: machines that append to one file at once tear it on NFS (open(2), O_APPEND). Where an
earlier holder may still run, the files are replaced by copies, so that what it appends goes to files without a name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.artifacts import Store
from mot_core.completers.base import Completion
from mot_core.errors import StoreError
from mot_core.files import replaced_by_copy, sync_directory, write_atomically
from mot_core.identity import fingerprint

SYNC_SECONDS = 1.0
"""Single rows are written at once, which outlives a killed process, and synced this often, which outlives the machine."""
log = logging.getLogger("mot.journal")


@dataclass(frozen=True)
class Place:
    """Where a row lies: offset and length in bytes, and how it ended."""

    offset: int
    length: int
    finish_reason: str


class Journal:
    """One scope's rows, open for reading and appending; hold its scope's lock (`locked_journal`), whose `check` is called
    before anything is changed."""

    def __init__(self, directory: Path, scope: Mapping[str, Any], check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self.path = directory / "rows.jsonl"
        self.engines = directory / "engines.jsonl"
        self.places: dict[str, Place] = {}
        self.spent = {"prompt_tokens": 0.0, "completion_tokens": 0.0}
        if not (directory / "scope.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(directory / "scope.json", json.dumps(dict(scope), indent=1, sort_keys=True) + "\n")
        self._engine_ids = {row["id"] for row in whole_lines(self.engines)}
        new = not self.path.exists()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if new:
            sync_directory(directory)
        self._end = self._load()
        self._synced = time.monotonic()

    def _load(self) -> int:
        """Index the whole groups; cut off what follows the last one."""
        end, offset = 0, 0
        group: list[tuple[dict[str, Any], Place]] = []
        with self.path.open("rb") as file:
            for line in file:
                row = _row(line)
                if row is not None:
                    group.append((row, Place(offset, len(line), row["finish_reason"])))
                offset += len(line)
                if row is None:  # a line that no writer of ours ended; rows after it may still be whole
                    group = []
                elif row["left"] == 0:
                    for kept, place in group:
                        self._note(kept, place)
                    group, end = [], offset
        if end < offset:
            log.warning("%s: a torn tail of %d bytes is cut off; its requests are asked again", self.path, offset - end)
            self._check()
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
        return end

    def _note(self, row: Mapping[str, Any], place: Place) -> None:
        held = self.places.get(row["key"])
        self.spent["prompt_tokens"] += row.get("prompt_tokens", 0)
        self.spent["completion_tokens"] += row["num_tokens"]
        # A failure never displaces an answer: an answered request is never asked again.
        if held is None or held.finish_reason == "failed" or place.finish_reason != "failed":
            self.places[row["key"]] = place

    def answered(self, key: str) -> bool:
        """Whether a request needs no asking: it has a row that is no failure."""
        place = self.places.get(key)
        return place is not None and place.finish_reason != "failed"

    def append(self, completions: list[Completion], engine: Mapping[str, Any]) -> None:
        """Write completions as one group.

        Raises:
            StoreError: the disk took only a part; the part is cut off again.
            LeaseLost: another process writes this journal now.
        """
        if not completions:
            return
        self._check()
        engine_id = self._engine_id(engine)
        rows = [completion.to_json() for completion in completions]
        lines = [_line({**row, "engine": engine_id, "left": len(rows) - 1 - index}) for index, row in enumerate(rows)]
        group = b"".join(lines)
        try:
            written = os.write(self._descriptor, group)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        if written != len(group):
            os.ftruncate(self._descriptor, self._end)
            raise StoreError(f"{self.path}: only {written} of {len(group)} bytes could be written; is the disk full?")
        for row, line in zip(rows, lines, strict=True):
            self._note(row, Place(self._end, len(line), row["finish_reason"]))
            self._end += len(line)
        if len(completions) > 1 or time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        self.sync()
        os.close(self._descriptor)

    def read(self, key: str) -> dict[str, Any]:
        """A request's row, as it lies in the journal.

        Raises:
            StoreError: another row lies there: somebody else has written to the file since it was opened.
        """
        place = self.places[key]
        row = _row(os.pread(self._descriptor, place.length, place.offset))
        if row is None or row["key"] != key:
            raise StoreError(
                f"{self.path}: no row of request {key} at byte {place.offset}; another process has written to the journal, "
                "which only its lock's holder may; run the same command again: whole rows are kept"
            )
        return row

    def rows(self, keys: list[str]) -> Iterator[Completion]:
        """The completions of requests, in order."""
        return (Completion.from_json(self.read(key)) for key in keys)

    def _engine_id(self, facts: Mapping[str, Any]) -> str:
        engine_id = fingerprint(dict(facts))[:12]
        if engine_id not in self._engine_ids:
            with self.engines.open("ab") as file:
                if file.tell() and not self.engines.read_bytes().endswith(b"\n"):
                    file.write(b"\n")  # after a torn line, which readers pass over
                file.write(_line({"id": engine_id, **facts}))
                file.flush()
                os.fsync(file.fileno())
            self._engine_ids.add(engine_id)
        return engine_id


@contextlib.contextmanager
def locked_journal(store: Store, scope: Mapping[str, Any]) -> Iterator[Journal]:
    """A scope's journal, under its lock."""
    directory = journal_dir(store, scope)
    with store.lock(f"requests-{fingerprint(dict(scope))}") as lock:
        if lock.earlier_may_run:
            for path in directory.glob("*.jsonl"):
                replaced_by_copy(path)
        with contextlib.closing(Journal(directory, scope, lock.check)) as journal:
            yield journal


def journal_dir(store: Store, scope: Mapping[str, Any]) -> Path:
    """Where a scope's journal lies."""
    return store.root / "requests" / fingerprint(dict(scope))


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines, torn ones left out; none if there is no file."""
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _line(row: Mapping[str, Any]) -> bytes:
    # A lone surrogate, which a model's decoded bytes may hold, has no UTF-8: keep it as its escape.
    return json.dumps(row, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def _row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("left"), int) and "key" in row and "finish_reason" in row
    return row if whole else None
