"""Bring a store that an older version wrote to this version's format: `mot store migrate`.

Invariant: completions that were paid for are carried over, key by key; a migration that is killed is started again
and ends the same; the store's marker changes last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mot_core.artifacts import MANIFEST, STORE_FORMAT, Store
from mot_core.completers.base import Completion
from mot_core.completers.journal import locked_journal
from mot_core.completers.stage import ROWS, journal_scope
from mot_core.errors import StoreError
from mot_core.files import read_jsonl, sha256_of, write_atomically

Tell = Callable[[str], None]


def migrate(store: Store, tell: Tell = lambda line: None) -> int:
    """Migrate a store to `STORE_FORMAT`; the number of completions carried over.

    Raises:
        StoreError: there is no store, it is newer than this program, or a step's files are damaged.
    """
    marker = store.root / "store.json"
    try:
        found = json.loads(marker.read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store.root} is no store of ours ({error}); expected store.json with a format") from error
    if found > STORE_FORMAT:
        raise StoreError(f"store {store.root}: format {found} is newer than this program's {STORE_FORMAT}; upgrade mot")
    carried = 0
    with store.lock("migration"):
        if found == 1:
            (store.root / "requests").mkdir(exist_ok=True)
            batches = [path for path in sorted((store.root / "objects").iterdir()) if _kind(path) == "completion-batch"]
            for path in batches:
                carried += _carry_over(store, path)
            tell(f"{carried} completions of {len(batches)} batches are in {store.root / 'requests'}")
            write_atomically(marker, json.dumps({"format": 2}) + "\n")
        for path in sorted((store.root / "objects").iterdir()):
            if _kind(path) == "completion-batch":
                shutil.rmtree(path)
    return carried


def _carry_over(store: Store, path: Path) -> int:
    """Format 1 published completions as batches, parts of a step; format 2 journals them."""
    manifest = json.loads((path / MANIFEST).read_text())
    if sha256_of(path / ROWS) != manifest["files"][ROWS]["sha256"]:
        raise StoreError(f"{path / ROWS} does not match its hash; remove {path} to ask its requests again, then go on")
    spec = manifest["spec"]
    scope = journal_scope(spec["model"], spec["sampling"], spec["completer"])
    with locked_journal(store, scope) as journal:
        rows = [Completion.from_json(row) for row in read_jsonl(path / ROWS)]
        missing = [row for row in rows if not journal.answered(row.key) and row.finish_reason != "failed"]
        journal.append(missing, {"engine": spec["completer"], "recorded_by_format": 1, **manifest["versions"]})
    return len(missing)


def _kind(path: Path) -> Any:
    try:
        return json.loads((path / MANIFEST).read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
