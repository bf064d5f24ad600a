"""The journal: every completion that was ever written, kept so that none is asked for twice.

    STORE/requests/<scope>/scope.json    who was asked, and how
    STORE/requests/<scope>/rows.jsonl    append-only: a completion a line
    STORE/requests/<scope>/engines.jsonl engines and their settings, by the id that rows carry
    STORE/requests/<scope>/shards/<i>-of-<n>/  the same for one shard of a step's requests, until the journal takes it up

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
import shutil
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

Shard = tuple[int, int]
"""Which of how many parts of a step's requests, from zero."""
SHARDS = "shards"
SYNC_SECONDS = 1.0
"""Single rows are written at once, which outlives a killed process, and synced this often, which outlives the machine."""
TAKEN_AT_ONCE = 256
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

    def take_up(self, shard: Journal) -> tuple[set[str], list[dict[str, Any]]]:
        """Append the rows of a shard that have no answer here; their keys, and the facts of the engines that answered.
        Done again, it appends nothing twice."""
        engines = {row.pop("id"): row for row in whole_lines(shard.engines)}
        keys = sorted((key for key in shard.places if not self.answered(key)), key=lambda key: shard.places[key].offset)
        for first in range(0, len(keys), TAKEN_AT_ONCE):
            rows = [shard.read(key) for key in keys[first : first + TAKEN_AT_ONCE]]
            for engine in dict.fromkeys(row["engine"] for row in rows):
                of_engine = [Completion.from_json(row) for row in rows if row["engine"] == engine]
                self.append(of_engine, engines[engine])
        self.sync()
        return set(keys), list(engines.values())

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


@contextlib.contextmanager
def locked_shard(store: Store, scope: Mapping[str, Any], shard: Shard) -> Iterator[tuple[Journal, set[str]]]:
    """A shard's own journal, under its own lock, and the requests that the scope's journal has answers to.

    Shards answer side by side. Each waits here for whoever has the scope's journal, and takes its own lock before it lets
    that go: so a step that follows finds either the shard's lock held or nothing of it, and asks for nothing twice.
    """
    with contextlib.ExitStack() as held:
        with locked_journal(store, scope) as whole:
            held.enter_context(store.lock(f"requests-{fingerprint(dict(scope))}-{_name(shard)}"))
            answered = {key for key in whole.places if whole.answered(key)}
        directory = journal_dir(store, scope) / SHARDS / _name(shard)
        yield held.enter_context(contextlib.closing(Journal(directory, scope))), answered


def take_up_shards(store: Store, scope: Mapping[str, Any], journal: Journal) -> tuple[set[str], list[dict[str, Any]]]:
    """Move what shards were answered into the scope's journal, which the caller holds; the rows' keys, and the facts of
    the engines. A shard that still answers is waited for."""
    taken: set[str] = set()
    engines: list[dict[str, Any]] = []
    for directory in sorted((journal_dir(store, scope) / SHARDS).glob("*-of-*")):
        with store.lock(f"requests-{fingerprint(dict(scope))}-{directory.name}"):
            with contextlib.closing(Journal(directory, scope)) as shard:
                keys, facts = journal.take_up(shard)
            shutil.rmtree(directory)
        taken |= keys
        engines += [one for one in facts if one not in engines]
    return taken, engines


def _name(shard: Shard) -> str:
    index, count = shard
    return f"{index + 1}-of-{count}"


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
