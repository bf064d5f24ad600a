"""The store: what is done, and the only truth about it.

    STORE/store.json             format of this store, and how long its leases last
    STORE/objects/<identity>/    one published step: its files, and manifest.json written last
    STORE/requests/<scope>/      journal of completions: append-only, outlives upgrades (mot_core.completers.journal)
    STORE/tmp/<identity>.<n>/    unfinished work of the lock's n-th holder; the next one resumes from it
    STORE/locks/<identity>/      held by the process that computes a step (mot_core.locks)
    STORE/logs/<identity>.log    what the step's worker printed
    STORE/logs/<identity>.usage.jsonl  what it took of the machine, sampled (mot_core.usage)
    STORE/runs/<run id>/         one invocation: index, summary, report (not content-addressed)
    STORE/removed/<identity>.json  which weights of a published step were removed (mot_core.removal), written before they go

Unfinished work may lie on a disk of the machine's own instead, under MOT_SCRATCH; it is copied into the store to be published.

Invariant: a step exists if and only if its manifest does. A published step's files are never changed; they go with the
whole step, its manifest first, or they are weights that STORE/removed names: then the step stays published without them.
It holds even where a holder goes on after it lost the lock: nobody writes where another one does, a directory takes a
published step's place by a rename that fails if something is there, and brings its own manifest with it.
An entry of these folders is never a link, so what is written for an identity lands in the store.
Longer than most: finding, computing and publishing keep these invariants together, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mot_core.errors import LeaseLost, StoreError
from mot_core.files import (
    entry_name,
    explain_disk_errors,
    replaced_by_copy,
    sha256_of,
    sync_directory,
    sync_file,
    write_atomically,
)
from mot_core.locks import Lease, LeaseTiming, Lock
from mot_core.steps import Step
from mot_core.users import in_use, other_runs

STORE_FORMAT = 2
MANIFEST = "manifest.json"
UNPUBLISHED = ".manifest.json"
"""The manifest's name while its directory comes into place: it describes the files beside it, whoever names it at last."""
SCRATCH = "MOT_SCRATCH"
_TORN = ".torn"
log = logging.getLogger("mot.store")


@dataclass(frozen=True)
class Manifest:
    """The record of one published step. `files` maps a relative name to its SHA-256 and size in bytes."""

    identity: str
    kind: str
    version: int
    label: str
    spec: dict[str, Any]
    parents: list[list[str]]
    files: dict[str, dict[str, Any]]
    counts: dict[str, Any]
    versions: dict[str, str]
    host: dict[str, Any]
    started: float
    ended: float


@dataclass(frozen=True)
class Published:
    """A small record of a published step; this, never a tensor or table, passes between tasks."""

    identity: str
    kind: str
    path: Path
    counts: dict[str, Any] = field(default_factory=dict)
    reused: bool = True
    seconds: float = 0.0
    removed: tuple[str, ...] = ()
    """Weights that are not there any more."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Published:
        return cls(**{**record, "path": Path(record["path"]), "removed": tuple(record["removed"])})


class Store:
    """Published steps under one root. Safe for several processes at once, of one machine or of several that share it."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().resolve()

    # -- opening ---------------------------------------------------------------------------------------

    def open(self) -> Store:
        """Create what is missing and refuse what cannot serve.

        Raises:
            StoreError: read-only, full, or of another format.
        """
        marker = self.root / "store.json"
        with explain_disk_errors(f"store {self.root}"):
            for name in ("objects", "requests", "tmp", "locks", "logs", "runs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                write_atomically(marker, json.dumps({"format": STORE_FORMAT}) + "\n")
            probe = self.root / "tmp" / f".writable-{socket.gethostname()}-{os.getpid()}"
            write_atomically(probe, "x" * 4096)
            probe.unlink()
            self.check_format()
        return self

    def check_format(self) -> None:
        """Refuse a store of another format; nothing is written.

        Raises:
            StoreError: written by a newer version, or by an older one and not brought up to date.
        """
        found = json.loads((self.root / "store.json").read_text()).get("format")
        if not isinstance(found, int) or found > STORE_FORMAT:
            raise StoreError(
                f"store {self.root}: its format is {found!r}, this program understands up to {STORE_FORMAT}; "
                "it was written by a newer version: upgrade mot, or give another --store"
            )
        if found < STORE_FORMAT:
            raise StoreError(
                f"store {self.root}: its format is {found}, this program writes {STORE_FORMAT}; bring it up to date "
                f"with: mot store migrate --store {self.root} (it takes seconds; no completion is asked for again)"
            )

    # -- places ----------------------------------------------------------------------------------------

    def object_dir(self, identity: str) -> Path:
        return self._place("objects", identity)

    @property
    def work_root(self) -> Path:
        """Where unfinished work lies: in the store, or in this machine's scratch folder."""
        scratch = os.environ.get(SCRATCH)
        if not scratch:
            return self.root / "tmp"
        return Path(scratch).expanduser().resolve() / hashlib.sha256(str(self.root).encode()).hexdigest()[:16]

    def log_path(self, identity: str) -> Path:
        return self._place("logs", identity, ".log")

    def usage_path(self, identity: str) -> Path:
        return self._place("logs", identity, ".usage.jsonl")

    def removed_path(self, identity: str) -> Path:
        return self._place("removed", identity, ".json")

    def lock(self, name: str) -> Lock:
        """The lock of a step, by its identity, or of another thing in the store that one process at a time may change."""
        return Lease(self._place("locks", name), self._lease_timing)

    @cached_property
    def _lease_timing(self) -> LeaseTiming:
        return LeaseTiming.of_store(self.root / "store.json")

    def _place(self, folder: str, identity: str, suffix: str = "") -> Path:
        path = self.root / folder / f"{entry_name(identity, 'identity')}{suffix}"
        refuse_link(path, f"store {self.root}")
        return path

    def in_use(self, what: str, is_run: bool = False) -> AbstractContextManager[None]:
        """Nothing is removed from the store while the block takes."""
        return in_use(self.root / "locks", what, is_run)

    def other_runs(self) -> list[str]:
        """The runs that other processes are at in this store."""
        return other_runs(self.root / "locks")

    # -- reading ---------------------------------------------------------------------------------------

    def manifest(self, identity: str) -> Manifest | None:
        """The manifest of a step, or None if the step is not published (or its manifest is unreadable)."""
        path = self.object_dir(identity) / MANIFEST
        try:
            document = json.loads(path.read_text())
            return Manifest(**document)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            log.warning("%s is damaged (%s): the step will be redone", path, error)
            return None

    def manifests(self) -> Iterator[Manifest]:
        """Every published step's manifest."""
        for entry in sorted((self.root / "objects").glob("*/")) if (self.root / "objects").is_dir() else ():
            found = self.manifest(entry.name) if (entry / MANIFEST).is_file() else None
            if found is not None:
                yield found

    def find(self, identity: str, verify: bool = True, *, whole: bool = True) -> Published | None:
        """A published step whose files match their hashes; None, with a warning, if any is damaged. One whose weights were
        removed is none either, unless `whole` is off: then the record says which are gone."""
        manifest = self.manifest(identity)
        if manifest is None:
            return None
        removed = self.removed_files(manifest)
        if removed and whole:
            log.info(
                "%s %s: %s removed by mot gc; the step will be redone", manifest.kind, identity, ", ".join(removed)
            )
            return None
        if verify:
            damaged = self.damaged_files(manifest)
            if damaged:
                log.warning("%s %s: damaged: %s; the step will be redone", manifest.kind, identity, "; ".join(damaged))
                return None
        return Published(
            identity, manifest.kind, self.object_dir(identity), manifest.counts, True,
            manifest.ended - manifest.started, removed,
        )  # fmt: skip

    def removed_files(self, manifest: Manifest) -> tuple[str, ...]:
        """The files of a published step that were removed on purpose and are not there. One that is missing without a
        record is damage."""
        try:
            names = json.loads(self.removed_path(manifest.identity).read_text())["files"]
        except FileNotFoundError:
            return ()
        directory = self.object_dir(manifest.identity)
        return tuple(name for name in manifest.files if name in names and not (directory / name).exists())

    def damaged_files(self, manifest: Manifest) -> list[str]:
        """What is wrong with a published step's files, a line each; empty when all is well. What was removed on purpose is
        no damage."""
        damaged, removed = [], self.removed_files(manifest)
        for name, facts in manifest.files.items():
            if name in removed:
                continue
            path = self.object_dir(manifest.identity) / name
            if not path.is_file():
                damaged.append(f"{name} is missing")
            elif path.stat().st_size != facts["size"]:
                damaged.append(f"{name} has {path.stat().st_size} bytes, expected {facts['size']}")
            elif sha256_of(path) != facts["sha256"]:
                damaged.append(f"{name} does not match its hash")
        return damaged

    # -- writing ---------------------------------------------------------------------------------------

    def obtain(self, step: Step, compute: Callable[[Path], dict[str, Any]]) -> Published:
        """The published step, computed by `compute(work_dir)` under the step's lock if it is missing.

        `compute` writes every file of the step into `work_dir` and returns its counts; names that start with
        a dot are scratch (checkpoints), removed at publication. It is called again if the lock is lost meanwhile and
        the one who took it over publishes nothing.
        """
        what = f"{step.kind} {step.identity}"
        while True:
            try:
                with explain_disk_errors(what), self.in_use(step.label), self.lock(step.identity) as lock:
                    found = self.find(step.identity)
                    if found is not None:
                        self._discard_work(step.identity, lock)
                        return found
                    return self._computed(step, compute, lock)
            except LeaseLost as lost:
                log.warning("%s %s: %s; it is looked up again", step.kind, step.label, lost)

    def _computed(self, step: Step, compute: Callable[[Path], dict[str, Any]], lock: Lock) -> Published:
        started = time.time()
        work_dir = self.work_root / f"{step.identity}.{lock.number}"
        for path in {*_works(self.work_root, step.identity, lock.number), work_dir}:
            refuse_link(path, f"store {self.root}")
        try:
            self._take_over_work(work_dir, step.identity, lock)
            counts = compute(work_dir)
            return self._publish(step, self._in_store(work_dir, step.identity, lock), counts, started, lock)
        except Exception:
            lock.check()  # whoever took the lock over has taken the work directory as well: no error of the step's
            with contextlib.suppress(OSError):  # on a full disk the next attempt needs the room
                _clear(work_dir, scratch=False)
                if work_dir != self._inside(work_dir):
                    _remove(self._inside(work_dir))
            raise

    # -- unfinished work -------------------------------------------------------------------------------

    def _take_over_work(self, work_dir: Path, identity: str, lock: Lock) -> None:
        """Make the holder's own work directory, with the scratch of the last one who was at the step."""
        earlier = _works(self.work_root, identity, lock.number)
        if earlier:
            earlier.pop().replace(work_dir)  # its owner, should it still run, finds no more place to write to
        else:
            work_dir.mkdir(parents=True)
        for path in earlier:
            _remove(path)
        _clear(work_dir, scratch=False)  # what a killed attempt left half written
        if lock.earlier_may_run:
            for path in work_dir.rglob("*"):
                if path.is_file():
                    replaced_by_copy(path)  # its owner may have it open, and would write on

    def _inside(self, work_dir: Path) -> Path:
        """Where a work directory's files lie in the store's file system, from where a rename publishes them."""
        return self.root / "tmp" / work_dir.name

    def _in_store(self, work_dir: Path, identity: str, lock: Lock) -> Path:
        """The whole work there; scratch stays where it is, for as long as the step is not published."""
        inside = self._inside(work_dir)
        if inside == work_dir:
            return work_dir
        for path in _works(inside.parent, identity, lock.number):  # copies that killed attempts began
            _remove(path)
        inside.mkdir()
        for path in _finished(work_dir):
            target = inside / path.relative_to(work_dir)
            if path.is_dir():
                target.mkdir()
            else:
                shutil.copyfile(path, target)
        return inside

    def _discard_work(self, identity: str, lock: Lock) -> None:
        """Remove what lost and killed attempts left of a published step, up to the lock's holder."""
        for parent in {self.root / "tmp", self.work_root}:
            for path in [*_works(parent, identity, lock.number), parent / f"{identity}{_TORN}"]:
                _remove(path)

    # -- publication -----------------------------------------------------------------------------------

    def _publish(self, step: Step, work_dir: Path, counts: dict[str, Any], started: float, lock: Lock) -> Published:
        from mot_core.provenance import host_facts, package_versions

        files = {}
        for path in _finished(work_dir):
            if path.is_file():
                sync_file(path)
                files[str(path.relative_to(work_dir))] = {"sha256": sha256_of(path), "size": path.stat().st_size}
        ended = time.time()
        manifest = Manifest(
            step.identity, step.kind, step.version, step.label, dict(step.spec), step.parent_identities(), files,
            counts, package_versions(), host_facts(), started, ended,
        )  # fmt: skip
        _clear(work_dir, scratch=True)  # so late, since copying and hashing weights takes minutes
        (work_dir / UNPUBLISHED).write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
        sync_file(work_dir / UNPUBLISHED)
        lock.check()
        final_dir = self.object_dir(step.identity)
        if final_dir.exists():
            self._remove_unpublished(final_dir, files)
        self._put(work_dir, final_dir)
        self._discard_work(step.identity, lock)
        return Published(step.identity, step.kind, final_dir, counts, False, ended - started)

    def _put(self, work_dir: Path, final_dir: Path) -> None:
        """Publish a whole directory; the manifest takes its name last.

        Raises:
            LeaseLost: another holder came first, in the moment since the lock was checked.
        """
        try:
            work_dir.replace(final_dir)
            sync_directory(final_dir.parent)
            (final_dir / UNPUBLISHED).replace(final_dir / MANIFEST)
            sync_directory(final_dir)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT, errno.ESTALE):
                raise
            raise LeaseLost(f"{final_dir.name}: another process published meanwhile ({error})") from error

    def _remove_unpublished(self, final_dir: Path, new_files: dict[str, dict[str, Any]]) -> None:
        """Clear a torn or damaged object; its manifest goes first, so that it never counts as done.

        Raises:
            LeaseLost: it is neither: another holder published it.
        """
        if self.find(final_dir.name) is not None:
            raise LeaseLost(f"{final_dir.name}: another process published meanwhile")
        manifest_path = final_dir / MANIFEST
        if manifest_path.exists():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                old_files = json.loads(manifest_path.read_text())["files"]
                same = {n: f["sha256"] for n, f in old_files.items()} == {n: f["sha256"] for n, f in new_files.items()}
                log.warning("%s redone: %s", final_dir.name, "the same content" if same else "CONTENT DIFFERS")
            manifest_path.unlink()
        # Out of the way in one piece: its owner, should it still run, then finds no more place for its manifest.
        aside = self.root / "tmp" / f"{final_dir.name}{_TORN}"
        _remove(aside)
        final_dir.replace(aside)
        _remove(aside)


def refuse_link(path: Path, where: str) -> None:
    """Raise `StoreError` if a place to write to is a symbolic link."""
    if path.is_symlink():
        place = f"{path.parent.name}/{path.name}"
        raise StoreError(f"{where}: {place} is a symbolic link to {str(path.readlink())!r}; remove it")


def _works(parent: Path, identity: str, number: int) -> list[Path]:
    """The work directories of a step's holders up to a number, the last one's at the end. What is above belongs to
    somebody who took the lock over."""
    found = [path for path in parent.glob(f"{identity}.*") if path.suffix[1:].isdigit()]
    numbered = sorted((int(path.suffix[1:]), path) for path in found)
    return [path for held, path in numbered if held <= number]


def _remove(directory: Path) -> None:
    """Remove a directory that another machine may be removing, too."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _finished(work_dir: Path) -> list[Path]:
    """What of a work directory is published, directories before what they hold: all but scratch entries."""
    found = work_dir.rglob("*")
    return sorted(path for path in found if not path.relative_to(work_dir).parts[0].startswith("."))


def _clear(work_dir: Path, scratch: bool) -> None:
    """Remove a work directory's scratch entries (dot names), or all the others."""
    for entry in list(work_dir.iterdir()):
        if entry.name.startswith(".") == scratch:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def find_all(store: Store, identities: list[str]) -> dict[str, Published | None]:
    """`Store.find` for many steps at once, whether their weights are still there or not; hashing releases the interpreter,
    so threads help."""
    unique = list(dict.fromkeys(identities))
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(unique, pool.map(lambda identity: store.find(identity, whole=False), unique), strict=True))
