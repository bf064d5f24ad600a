"""Files written whole or not at all, hashed, synced; JSON lines; the disk's own errors with what to do about them.

Invariant: under its own name a reader finds a whole file or directory, or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mot_core.errors import MotError, StoreError

_ENTRY = re.compile(r"[A-Za-z0-9._-]{1,200}")


def entry_name(name: str, what: str) -> str:
    """A name that a file or directory may be given from a spec, an index or a command: one part of a path, in ASCII.

    Raises:
        StoreError: anything else, such as `..`, a path, an empty name or one with a line break.
    """
    if _ENTRY.fullmatch(name) is None or set(name) == {"."}:
        shown = ascii(name) if len(name) <= 80 else f"{name[:80]!a}…, {len(name)} characters"
        raise StoreError(f"{what} {shown} names no place; expected 1 to 200 of the letters A-Z a-z, digits and . _ -")
    return name


def inside(directory: Path, part: str, what: str) -> Path:
    """A place below a directory, given by a relative path that an index holds; the directory itself for an empty one.

    Raises:
        StoreError: a path that leads out of the directory, by `..`, an absolute path or a link.
    """
    place = directory / part
    if "\0" in part or ".." in Path(part).parts or not place.resolve().is_relative_to(directory.resolve()):
        raise StoreError(f"{what} {part!r} leads out of {directory}; expected a path below it")
    return place


def refuse_links(directory: Path, what: str) -> None:
    """
    Raises:
        StoreError: the directory, or anything in it, is a symbolic link: what is written there would land elsewhere.
    """
    found = directory if directory.is_symlink() else None
    for path in directory.rglob("*") if found is None else ():
        if path.is_symlink():
            found = path
            break
    if found is not None:
        raise StoreError(f"{what}: {found} is a symbolic link to {str(found.readlink())!r}; remove it")


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A neighbour to write into, which takes the file's name, synced, once the block has ended well."""
    unfinished = _neighbour(path, "tmp")
    try:
        yield unfinished
        sync_file(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def replaced_by_copy(path: Path) -> None:
    """Put a copy in a file's place: who has it open still reads and writes the old one, which has no name any more."""
    with whole_file(path) as unfinished:
        shutil.copyfile(path, unfinished)


@contextlib.contextmanager
def whole_directory(path: Path, *, sync: bool = True, replaces: bool = False) -> Iterator[Path]:
    """A neighbour to write into, which takes the directory's name once the block has ended well. What is there
    already must be empty, unless it is replaced. `sync` may be off for weights, which can be written again."""
    unfinished, old = _neighbour(path, "tmp"), _neighbour(path, "old")
    with explain_disk_errors(str(path)):
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            if sync:
                for file in unfinished.rglob("*"):
                    if file.is_file():
                        sync_file(file)
            if replaces:
                path.rename(old)
            unfinished.rename(path)  # over nothing, or over an empty directory
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        sync_directory(path.parent)
        if replaces:
            shutil.rmtree(old)


def _neighbour(path: Path, suffix: str) -> Path:
    """A hidden name beside a path that no other process has, on no machine that shares the folder."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{suffix}")


def write_atomically(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [json.loads(line) for line in file]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)


_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space, then run the same command again: it goes on where it was",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EROFS: "the file system is read-only; give a --store that can be written",
    errno.EACCES: "permission denied; give a --store that this user can write",
    errno.EPERM: "permission denied; give a --store that this user can write",
    errno.ENOTDIR: "a part of the path is a file, not a directory; give another --store",
}


@contextlib.contextmanager
def explain_disk_errors(what: str) -> Iterator[None]:
    """Turn the disk's own errors into ones that say what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            where = error.filename2 or error.filename or error  # of a copy or rename what it was to become
            raise StoreError(f"{what}: {_DISK_ERRORS[error.errno]} ({where})") from error
        raise
    except Exception as error:
        # safetensors reports the disk's errors as its own type, with the number in the text.
        if "os error 28" in str(error):
            raise StoreError(f"{what}: {_DISK_ERRORS[errno.ENOSPC]} ({error})") from error
        raise


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """`(offset in bytes, line)` of each line of a file."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def numbered_rows(path: Path, error: type[MotError]) -> Iterator[tuple[int, dict[str, Any], int, int]]:
    """`(line number, row, offset, size)` of each line of a user's file of JSON objects; empty lines are none.

    Raises:
        MotError: of the type `error`, for a file that is missing, or a line that holds something else.
    """
    if not path.is_file():
        raise error(f"{path}: there is no such file; expected JSON lines")
    for number, (offset, line) in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as cause:
            raise error(f"{path}, line {number}: not JSON ({cause}); expected one object a line") from cause
        if not isinstance(row, dict):
            raise error(f"{path}, line {number}: a JSON {type(row).__name__}; expected an object")
        yield number, row, offset, len(line)
