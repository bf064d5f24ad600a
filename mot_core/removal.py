"""What nobody wants of a store goes: `mot gc`.

Of a step that some run names only weights go: its manifest and small files stay, so that tables, reports, trackers and
`mot regrade` read what they did. A step that no run names goes whole. Journals of completions never go: they were paid
for. Invariant: it may be killed at any point and started again; at every moment a step is published or is not, and the
absence of a published step's file is on record before the file goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from mot_core.artifacts import MANIFEST, Manifest, Store
from mot_core.claims import Claim, claims_of, run_names, series_of
from mot_core.errors import StoreError
from mot_core.files import explain_disk_errors, sync_directory, write_atomically
from mot_core.spec import nearest
from mot_core.users import alone, users

WEIGHTS, STEP, UNFINISHED, LOG, RUN = "weights", "step", "unfinished work", "log", "run"


@dataclass(frozen=True)
class Removal:
    """One thing that goes: `files` of a published step, or the path whole."""

    what: str
    path: Path
    label: str
    kind: str
    num_bytes: int
    why: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stay:
    """What one claim holds: its steps' bytes, and how many of them no other claim holds."""

    claim: str
    keeps: str
    num_steps: int
    num_bytes: int
    num_bytes_alone: int


@dataclass(frozen=True)
class Removals:
    """All that goes, in the order in which it goes, and what stays because of whom."""

    removals: list[Removal]
    stays: list[Stay]
    users: list[str] = field(default_factory=list)
    """Who uses the store; while anybody does, nothing is removed."""

    @property
    def num_bytes(self) -> int:
        return sum(one.num_bytes for one in self.removals)


def remove_unwanted(store: Store, forget: Sequence[str] = (), *, dry_run: bool = False) -> Removals:
    """Remove what no run wants, and whole runs that are to be forgotten; `dry_run` only says what would go.

    Raises:
        StoreError: no store, or one of another format; a run to forget that is not there; a record that cannot be read; a
            store in use.
    """
    if not (store.root / "store.json").is_file():
        raise StoreError(f"{store.root} is no store of ours (no store.json); give --store")
    store.check_format()  # an older one has answers that were paid for among its steps
    forgotten = _named(store, forget)
    locks = store.root / "locks"
    with explain_disk_errors(f"store {store.root}"), nullcontext() if dry_run else alone(locks):
        found = _look(store, forgotten, users(locks) if dry_run else [])
        if not dry_run:
            for removal in found.removals:
                _remove(store, removal)
    return found


def _named(store: Store, forget: Sequence[str]) -> set[str]:
    """The runs that are to be forgotten: each by its id, or all runs of one spec by what their ids have in common."""
    names = run_names(store)
    found: set[str] = set()
    for given in forget:
        fitting = [name for name in names if given in (name, series_of(name))]
        if not fitting:
            known = ", ".join(names[-5:]) or "none"
            raise StoreError(
                f"no run {given!r} to forget in {store.root}; give its whole id, or that without the count for all runs of "
                f"its spec: {nearest(given, names)}the last ones: {known}"
            )
        found.update(fitting)
    return found


# -- looking ---------------------------------------------------------------------------------------------


def _look(store: Store, forgotten: set[str], using: list[str]) -> Removals:
    claims = claims_of(store, without=forgotten)
    by_step: dict[str, list[Claim]] = {}
    for claim in claims:
        for identity in claim.steps:
            by_step.setdefault(identity, []).append(claim)
    held = _Held(claims)
    objects = store.root / "objects"
    removals: list[Removal] = []
    for path in sorted(objects.iterdir()) if objects.is_dir() else ():
        removals += _of_object(store, path, by_step.get(path.name, []), held)
    removals += _leftovers(store, by_step)
    removals += [
        Removal(RUN, store.root / "runs" / name, name, RUN, _size(store.root / "runs" / name), "it is to be forgotten")
        for name in sorted(forgotten)
    ]
    return Removals(removals, held.stays(), using)


def _of_object(store: Store, path: Path, claims: list[Claim], held: _Held) -> Iterator[Removal]:
    """What goes of one step; what stays is counted."""
    manifest = store.manifest(path.name)
    if manifest is None:
        if not claims:  # else the run that names it puts a whole step in its place
            yield Removal(
                UNFINISHED, path, path.name, UNFINISHED, _size(path), "it was never published, no run names it"
            )
        return
    if not claims:
        yield Removal(STEP, path, manifest.label, manifest.kind, _size(path), "no run names it")
        return
    gone = []
    for name, size in _there(path, manifest):
        keepers = [claim for claim in claims if claim.keeps_file(manifest.identity, name)]
        if keepers:
            held.count(keepers, size)
        else:
            gone.append((name, size))
    if gone:
        names = tuple(name for name, _ in gone)
        yield Removal(
            WEIGHTS, path, manifest.label, manifest.kind, sum(size for _, size in gone), _why(names, claims), names
        )


def _there(path: Path, manifest: Manifest) -> Iterator[tuple[str, int]]:
    for name in manifest.files:
        if (path / name).is_file():
            yield name, (path / name).stat().st_size


def _why(names: tuple[str, ...], claims: list[Claim]) -> str:
    told = "; ".join(f"{claim.name} keeps {claim.keeps}" for claim in claims[:2])
    more = f"; and {len(claims) - 2} more" if len(claims) > 2 else ""
    parts = sorted({str(Path(name).parent) for name in names} - {"."})
    return f"{told}{more}" + (f" ({', '.join(parts)})" if parts else "")


def _leftovers(store: Store, by_step: dict[str, list[Claim]]) -> Iterator[Removal]:
    """Unfinished work that no run goes on from, and logs and records of steps that are no more."""
    for path in _entries(store.root / "tmp"):
        identity = path.name.partition(".")[0]  # a holder's number follows
        published = store.manifest(identity) is not None if _is_identity(identity) else False
        if path.is_dir() and (published or identity not in by_step):
            why = "its step is published" if published else "no run names its step"
            yield Removal(UNFINISHED, path, identity, UNFINISHED, _size(path), why)
    for folder in ("logs", "removed"):
        for path in _entries(store.root / folder):
            identity = path.name.partition(".")[0]
            if _is_identity(identity) and identity not in by_step:
                yield Removal(LOG, path, identity, LOG, path.stat().st_size, "no run names its step")


def _entries(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith(".")) if directory.is_dir() else []


def _is_identity(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


class _Held:
    """Bytes that stay, by claim."""

    def __init__(self, claims: list[Claim]) -> None:
        self._claims = claims
        self._bytes = dict.fromkeys((claim.name for claim in claims), 0)
        self._alone = dict(self._bytes)

    def count(self, keepers: list[Claim], size: int) -> None:
        names = {claim.name for claim in keepers}
        for name in names:
            self._bytes[name] += size
        if len(names) == 1:
            self._alone[names.pop()] += size

    def stays(self) -> list[Stay]:
        return [
            Stay(claim.name, claim.keeps, len(claim.steps), self._bytes[claim.name], self._alone[claim.name])
            for claim in self._claims
        ]


# -- removing --------------------------------------------------------------------------------------------


def _remove(store: Store, removal: Removal) -> None:
    if removal.what == WEIGHTS:
        _remove_weights(store, removal)
    elif removal.path.is_dir():
        # What says that there is something goes first, so that what a kill leaves counts as nothing.
        for name in (MANIFEST, "index.json", "steps.json"):
            (removal.path / name).unlink(missing_ok=True)
        sync_directory(removal.path)
        shutil.rmtree(removal.path)
    else:
        removal.path.unlink()


def _remove_weights(store: Store, removal: Removal) -> None:
    record = store.removed_path(removal.path.name)
    before = json.loads(record.read_text())["files"] if record.is_file() else []
    record.parent.mkdir(exist_ok=True)
    write_atomically(record, json.dumps({"files": sorted({*before, *removal.files}), "why": removal.why}) + "\n")
    for name in removal.files:
        (removal.path / name).unlink(missing_ok=True)
