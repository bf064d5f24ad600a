"""Stores of older formats: refused with the remedy, migrated without asking anything again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import MANIFEST, Store
from mot_core.completers.base import Request
from mot_core.errors import StoreError
from mot_core.files import read_jsonl, sha256_of, write_jsonl
from mot_core.migration import migrate
from mot_core.removal import remove_unwanted
from tests.completers.test_stage import SAMPLING, Desk

COMPLETER = "tests.completers.test_stage:Counting"


def write_format_1(desk: Desk, num_problems: int) -> list[Path]:
    """Batches as version 0.1.0 published them, with rows that the teacher never wrote, so that they show."""
    scope = {"teacher": {"model": "m"}, "sampling": SAMPLING, "seed": 1, "completer": COMPLETER}
    paths = []
    for start in range(0, num_problems, 4):
        requests = [
            Request.of(scope, f"p{i}", f"{'long ' * (i % 3)}question {i}", 0)
            for i in range(start, min(start + 4, num_problems))
        ]
        path = desk.store.object_dir(f"batch{start:028d}")
        path.mkdir()
        rows: list[dict[str, Any]] = [
            {"key": r.key, "problem_id": r.problem_id, "sample_index": 0, "seed": r.seed, "text": f"paid for {r.key}",
             "num_tokens": 7, "finish_reason": "stop", "reason": ""}
            for r in requests
        ]  # fmt: skip
        write_jsonl(path / "completions.jsonl", rows)
        manifest = {
            "identity": path.name, "kind": "completion-batch", "version": 1, "label": "generate", "parents": [],
            "spec": {"model": {"model": "m"}, "sampling": SAMPLING, "completer": COMPLETER,
                     "requests": [row["key"] for row in rows]},
            "files": {"completions.jsonl": {"sha256": sha256_of(path / "completions.jsonl"), "size": 1}},
            "counts": {}, "versions": {"torch": "2.13.0"}, "host": {}, "started": 0.0, "ended": 1.0,
        }  # fmt: skip
        (path / MANIFEST).write_text(json.dumps(manifest))
        paths.append(path)
    (desk.store.root / "store.json").write_text('{"format": 1}\n')
    return paths


def test_an_older_store_is_refused_with_the_remedy(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    write_format_1(desk, 4)
    with pytest.raises(StoreError, match="its format is 1, this program writes 2; .*mot store migrate --store"):
        Store(desk.store.root).open()


def test_nothing_is_removed_from_an_older_store(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    paths = write_format_1(desk, 4)
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="its format is 1, this program writes 2; .*mot store migrate --store"):
            remove_unwanted(desk.store, dry_run=dry_run)
    assert all(path.exists() for path in paths)
    assert migrate(desk.store) == 4


def test_what_was_paid_for_is_carried_over(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    paths = write_format_1(desk, 10)
    assert migrate(desk.store) == 10
    assert not any(path.exists() for path in paths)
    Store(desk.store.root).open()
    published = desk.ask(num_problems=12)
    assert published.counts["num_asked"] == 2
    texts = [row["text"] for row in read_jsonl(published.path / "completions.jsonl")]
    assert [text.startswith("paid for") for text in texts] == [True] * 10 + [False] * 2
    assert migrate(desk.store) == 0, "a second migration finds nothing to do"


def test_a_damaged_batch_stops_the_migration_and_loses_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    paths = write_format_1(desk, 8)
    whole = (paths[1] / "completions.jsonl").read_bytes()
    (paths[1] / "completions.jsonl").write_bytes(whole[:-9])
    with pytest.raises(StoreError, match="does not match its hash"):
        migrate(desk.store)
    assert all(path.exists() for path in paths)
    (paths[1] / "completions.jsonl").write_bytes(whole)
    assert migrate(desk.store) == 4, "the first batch was carried over before the damage was met"
    assert desk.ask(num_problems=8).counts["num_asked"] == 0


def test_no_store_and_a_newer_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store of ours"):
        migrate(Store(tmp_path / "nothing"))
    store = Store(tmp_path / "newer").open()
    (store.root / "store.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="format 99 is newer"):
        migrate(store)
