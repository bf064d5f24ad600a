"""Rows that exist already: files (JSONL, CSV, parquet) and hub data sets, read through `datasets`.

Invariant: a cell arrives as it was written, and rows follow the file as it is now. JSONL lines are parsed here and CSV
cells stay text, since type inference would turn "042" into 42 and "2024-01-01" into a time stamp; files are read through
a cache that lives as long as the rows do, since `datasets` keys its own by time of change alone. No code of a data set
is run: `datasets` ≥ 4 has no loading scripts, which `pyproject.toml` requires.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mot_core.errors import ProblemError

_KINDS = {".jsonl": "text", ".ndjson": "text", ".json": "text", ".csv": "csv", ".parquet": "parquet"}
_SLICE = 1000


@dataclass(frozen=True)
class Row:
    """One row of a table: its cells, and where it lies (`place` is a file's name and 1-based row, or a split's)."""

    place: str
    file: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class _Part:
    """One file of a table, or a hub data set's split: a `datasets.Dataset` and how its rows become cells."""

    name: str
    where: str
    dataset: Any
    is_jsonl: bool

    def rows(self, start: int, end: int) -> Iterator[Row]:
        for first in range(start, end, _SLICE):
            columns = self.dataset[first : min(first + _SLICE, end)]
            for offset, cells in enumerate(zip(*columns.values(), strict=True)):
                place = first + offset + 1
                if not self.is_jsonl:
                    yield Row(f"{self.name}:{place}", self.name, dict(zip(columns, cells, strict=True)))
                elif cells[0].strip("\ufeff \t\r"):
                    yield Row(f"{self.name}:{place}", self.name, self._parsed(cells[0], place))

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line.removeprefix("\ufeff"))
            if not isinstance(row, dict):
                raise ValueError(f"this is a {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            raise ProblemError(
                f"{self.where}, line {number}: expected a JSON object a line, got {line[:80]!r} ({error}); a JSON array "
                "has to be written as JSONL"
            ) from error
        return row


class Rows:
    """The rows of one split of a table, in order; a context manager. Nothing of it is held in memory."""

    def __init__(self, parts: list[_Part], ranges: list[tuple[int, int]], scratch: str | None) -> None:
        self._parts = parts
        self._ranges = ranges
        # Also for rows that nobody closes: a cache must not outlive its reader.
        self.close = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True) if scratch else lambda: None

    def __iter__(self) -> Iterator[Row]:
        for start, end in self._ranges:
            offset = 0
            for part in self._parts:
                length = len(part.dataset)
                yield from part.rows(max(0, start - offset), min(length, end - offset))
                offset += length

    def at(self, place: str) -> Row:
        """The row at a place that iterating gave."""
        name, _, number = place.rpartition(":")
        part = next(part for part in self._parts if part.name == name)
        return next(part.rows(int(number) - 1, int(number)))

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_rows(table: Mapping[str, Any], file: str | None, split: str) -> Rows:
    """The rows of a `Table`'s split (in the form of `datasets`, such as `train[:10%]`); `file` is its path here.

    A file has the one split `train`. Filters are not applied: see `mot_core.columns`.

    Raises:
        ProblemError: what cannot be found, reached or read.
    """
    with _quiet():
        if file is not None:
            return _open_files(_paths(file), file, split)
        if table.get("data_files") is not None:
            paths, where = _downloaded(table)
            return _open_files(paths, where, split)
        return _open_hub(table, split)


def _open_files(paths: list[Path], file: str, split: str) -> Rows:
    """The rows of files; `file` names them in errors."""
    import datasets

    kind, options = _builder(paths, file)
    scratch = tempfile.mkdtemp(prefix="mot-rows-")
    try:
        data_files = {f"file{index}": glob.escape(str(path)) for index, path in enumerate(paths)}
        try:
            loaded = datasets.load_dataset(kind, data_files=data_files, cache_dir=scratch, **options)
        except Exception as error:
            raise ProblemError(f"{file}: cannot be read as {kind}: {_cause(error)}") from error
        names = _part_names(paths)
        parts = [
            _Part(name, str(path), loaded[key], kind == "text")
            for key, name, path in zip(data_files, names, paths, strict=True)
        ]
        total = sum(len(part.dataset) for part in parts)
        try:
            instruction = datasets.ReadInstruction.from_spec(split)
            ranges = [
                (one.from_ or 0, total if one.to is None else one.to)
                for one in instruction.to_absolute({"train": total})
            ]
        except (ValueError, AssertionError, KeyError) as error:
            raise ProblemError(
                f"{file}: it has no split {split!r} ({_cause(error)}); a file's one split is train, with {total} rows: "
                "give train, train[:10], train[10%:] or the like"
            ) from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Rows(parts, ranges, scratch)


def _open_hub(table: Mapping[str, Any], split: str) -> Rows:
    import datasets

    hub, config, revision = table["hub"], table.get("config"), table.get("revision")
    where = f"hub data set {hub!r}" + (f", configuration {config!r}" if config else "")
    if Path(hub).exists():  # `datasets` would read the directory, whose content identity does not hold
        raise ProblemError(
            f"{where}: a directory of this name is here, and would be read in its place; give its files as file"
        )
    try:
        loaded = datasets.load_dataset(hub, config, split=split, revision=revision)
    except ConnectionError as error:
        raise ProblemError(
            f"{where}: the hub cannot be reached ({_cause(error)}); check the network and HF_HUB_OFFLINE, or download the "
            "files once and give file"
        ) from error
    except Exception as error:
        raise ProblemError(
            f"{where}, revision {revision or 'main'}, split {split!r}: cannot be loaded: {_cause(error)}; check id, "
            "configuration, revision and split, and HF_TOKEN if it is gated"
        ) from error
    return Rows([_Part(split, where, loaded, False)], [(0, len(loaded))], None)


def _downloaded(table: Mapping[str, Any]) -> tuple[list[Path], str]:
    """A hub repository's files of a pattern, in the Hugging Face cache, and what errors call them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub, pattern, revision = table["hub"], table["data_files"], table.get("revision")
    where = f"files {pattern!r} of hub data set {hub!r}"
    try:
        found = snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=[pattern])
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ProblemError(
            f"{where}: the hub cannot be reached ({_cause(error)}); check the network and HF_HUB_OFFLINE, or download the "
            "files once and give file"
        ) from error
    except (OSError, ValueError) as error:
        raise ProblemError(
            f"{where}, revision {revision or 'main'}: cannot be loaded: {_cause(error)}; check id and revision, and "
            "HF_TOKEN if it is gated"
        ) from error
    paths = sorted(path for path in Path(found).glob(pattern) if path.is_file())
    if not paths:
        raise ProblemError(
            f"{where}, revision {revision or 'main'}: there are none; data_files is a pattern from the repository's top"
        )
    return paths, where


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: a worker's log is no terminal."""
    import datasets
    from huggingface_hub import utils

    bars = [module for module in (datasets, utils) if not module.are_progress_bars_disabled()]
    for module in bars:
        module.disable_progress_bars()
    try:
        yield
    finally:
        for module in bars:
            module.enable_progress_bars()


def _paths(file: str) -> list[Path]:
    path = Path(file).expanduser().absolute()
    pattern = str(path.relative_to(path.anchor))
    paths = sorted(Path(path.anchor).glob(pattern), key=str) if "*" in file else [path]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise ProblemError(
            f"{file}: {'does not exist' if missing else 'matches no file'}; expected JSONL, CSV or parquet"
        )
    return paths


def _part_names(paths: list[Path]) -> list[str]:
    """The files' names; with their folders, from where these part, if two files would have one name."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    top = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(top)) for path in paths]


def _builder(paths: list[Path], file: str) -> tuple[str, dict[str, Any]]:
    """The `datasets` builder for files, and its options."""
    suffixes = {Path(path.name.removesuffix(".gz")).suffix.lower() for path in paths}
    kinds = {_KINDS.get(suffix) for suffix in suffixes}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None or (kind == "parquet" and any(path.suffix == ".gz" for path in paths)):
        raise ProblemError(
            f"{file}: expected .jsonl, .csv or .parquet (the first two also with .gz), one kind for all files; got "
            f"{', '.join(sorted({''.join(path.suffixes) or path.name for path in paths}))}"
        )
    if kind == "csv":
        return kind, {"features": _csv_features(paths), "na_filter": False}
    return kind, {"encoding": "utf-8"} if kind == "text" else {}


def _csv_features(paths: list[Path]) -> Any:
    """Every column as text; without this, numbers and NA would be guessed."""
    import datasets

    headers = []
    for path in paths:
        opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rt", encoding="utf-8-sig", newline="") as stream:
                headers.append(next(csv.reader(stream), []))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ProblemError(f"{path}: cannot be read as CSV: {error}") from error
    if not headers[0] or any(set(header) != set(headers[0]) for header in headers):
        raise ProblemError(
            f"{paths[0]}: expected one header row, the same in every file; got {headers[0]} and {headers[-1]}"
        )
    return datasets.Features({name: datasets.Value("string") for name in headers[0]})


def _cause(error: BaseException) -> str:
    """What went wrong at the bottom, which `datasets` wraps, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
