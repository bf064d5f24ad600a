"""Safetensors read through memory maps, run by run, and written run by run at places known in advance.

Invariant: no tensor is ever copied whole; what is resident of an input are mapped pages, which the kernel can drop.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mot_core.errors import MergeError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path, name: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """A file's tensors and metadata, from its header alone.

    Raises:
        MergeError: a file that is not safetensors, is cut short, or holds a type that cannot be merged.
    """
    try:
        with safe_open(
            path, framework="pt"
        ):  # checks the header: its length, overlaps, holes, sizes, the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise MergeError(f"branch {name!r}: {path} cannot be read as safetensors: {error}; is it cut short?") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    entries = {}
    for key, facts in header.items():
        if facts["dtype"] not in DTYPES:
            raise MergeError(
                f"branch {name!r}: {key} is of type {facts['dtype']}; expected one of {', '.join(DTYPES)}; "
                "merge models before they are quantized"
            )
        begin, end = (8 + length + offset for offset in facts["data_offsets"])
        entries[key] = Entry(path, facts["dtype"], tuple(facts["shape"]), begin, end)
    return entries, metadata


class MappedFiles:
    """Flat tensors over mapped files, each file mapped once."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def flat(self, entry: Entry) -> torch.Tensor:
        """A tensor's values, (n,), in its own type, unread until they are touched."""
        if entry.size == 0:
            return torch.empty(0, dtype=DTYPES[entry.dtype])
        with self._lock:
            mapped = self._maps.get(entry.path)
            if mapped is None:
                with entry.path.open("rb") as file:
                    # A private copy on write, which is never written to: torch asks for writable memory.
                    mapped = self._maps[entry.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(mapped, dtype=DTYPES[entry.dtype], count=entry.size, offset=entry.begin)


@dataclass(frozen=True)
class Output:
    """A tensor to be written."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize


class ShardWriter:
    """Files of safetensors whose headers are written first, so that runs can be written in any order.

    The layout is that of `safetensors.torch.save_file`: wide types first, then by key. Runs go to the page cache and
    are not synced. As a context, it removes its files if the body fails.
    """

    def __init__(
        self, directory: Path, stem: str, outputs: Iterable[Output], max_shard_bytes: int, metadata: Mapping[str, str]
    ) -> None:
        self.directory, self.stem = directory, stem
        ordered = sorted(outputs, key=lambda output: (-DTYPES[output.dtype].itemsize, output.dtype, output.key))
        self.shards = _shards(ordered, max_shard_bytes)
        names = [f"{stem}.safetensors"]
        if len(self.shards) > 1:
            names = [f"{stem}-{n:05d}-of-{len(self.shards):05d}.safetensors" for n in range(1, len(self.shards) + 1)]
        self.paths = [directory / name for name in names]
        self.metadata = dict(metadata)
        self._files: list[int] = []
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> ShardWriter:
        for path, shard in zip(self.paths, self.shards, strict=True):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            self._files.append(file)
            header = self._header(shard, file)
            _write_at(file, header, 0)
        return self

    def write(self, key: str, offset: int, values: torch.Tensor) -> None:
        """Values `[offset, offset + N)` of a tensor, of its output type."""
        file, begin = self._places[key]
        _write_at(file, values.contiguous().view(torch.uint8).numpy(), begin + offset * values.element_size())

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for file in self._files:
            os.close(file)
        if error is not None:
            for path in [*self.paths, self.index_path]:
                path.unlink(missing_ok=True)
        elif len(self.shards) > 1:
            self.index_path.write_text(json.dumps(self._index(), indent=2) + "\n")

    @property
    def index_path(self) -> Path:
        return self.directory / f"{self.stem}.safetensors.index.json"

    def _header(self, shard: list[Output], file: int) -> bytes:
        place = 0
        entries: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        for output in shard:
            offsets = [place, place + output.num_bytes]
            entries[output.key] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": offsets}
            place += output.num_bytes
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        os.ftruncate(file, 8 + len(text) + place)
        for output in shard:
            self._places[output.key] = (file, 8 + len(text) + entries[output.key]["data_offsets"][0])
        return len(text).to_bytes(8, "little") + text

    def _index(self) -> dict[str, Any]:
        weight_map = {
            output.key: path.name for path, shard in zip(self.paths, self.shards, strict=True) for output in shard
        }
        total = sum(output.num_bytes for shard in self.shards for output in shard)
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _shards(outputs: list[Output], max_shard_bytes: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    filled = 0
    for output in outputs:
        if shards[-1] and filled + output.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(output)
        filled += output.num_bytes
    return shards


def _write_at(file: int, data: Any, place: int) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
