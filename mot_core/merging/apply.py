"""Applying a plan: runs of tensors stream through a few threads, from mapped inputs to their places in the output.

A run of `BLOCK` values of every model is held in float64, merged and rounded once. Nothing else is resident but the
statistics of a rule that surveys a tensor first, so memory does not grow with the model.

Invariant: bits and diagnostics do not depend on the number of threads or shards: runs have one size, each is computed
alone, and sums are added in the order of tensors and runs.
Longer than most: a run's way through one thread's buffers is one story.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import repeat
from operator import add
from typing import Any

import numpy as np
import torch

from mot_core.errors import MergeError
from mot_core.identity import derive_seed
from mot_core.merging.diagnostics import MergeDiagnostics, Sums, common_of, sampled, squares_of, sums_of
from mot_core.merging.plan import BranchFiles, Plan
from mot_core.merging.rules import Block, Rule
from mot_core.merging.tensors import DTYPES, FLOATS, MappedFiles, Output, ShardWriter

# Measured: long enough to hide what a call costs; longer ones gain nothing. Even, for `drawn`.
BLOCK = 1 << 17
_BLOCKS_A_TASK = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Share:
    """A branch's weight, and its own values of the rule's parameters."""

    weight: float
    own: dict[str, float]


@dataclass(frozen=True)
class Treatment:
    """What happens to a tensor: its rule, and a share a branch."""

    rule: Rule
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Task:
    """Blocks `[first, last)` of a tensor."""

    output: Output
    treatment: Treatment
    first: int
    last: int
    block: int


@dataclass(frozen=True)
class Before:
    """What was summed before a rule ran, and the start to measure the merge from: its values from `first` on."""

    sums: Sums
    start: torch.Tensor
    first: int
    scale: float

    def and_merged(self, merged: torch.Tensor) -> Sums:
        """The sums with the merge's own; `merged` is overwritten."""
        moved = merged[self.first : self.first + len(self.start)].sub_(self.start)
        return replace(self.sums, merged=self.scale * float(moved.dot(moved)))


class Merger:
    """One merge under way. `state` is what the rule carried from the previous merge."""

    def __init__(
        self, plan: Plan, treatment_of: Callable[[str], Treatment], writer: ShardWriter, *, seed: int = 0,
        threads: int = 1, state: BranchFiles | None = None, state_writer: ShardWriter | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.treatment_of, self.writer = plan, treatment_of, writer
        self.seed, self.threads = seed, threads
        self.state, self.state_writer = state, state_writer
        self._models = [*([plan.start] if plan.start is not None else []), *plan.branches]
        self.files = MappedFiles()
        self.diagnostics = MergeDiagnostics([branch.name for branch in plan.branches])
        self._scratch = threading.local()

    def run(self, progress: Progress) -> None:
        """Merge every tensor.

        Raises:
            MergeError: a value that is not finite, with model and key; integers that differ.
        """
        waiting: deque[tuple[str, bool, Future[list[Sums]]]] = deque()
        done, total = 0, len(self.plan.outputs)

        def collect(down_to: int) -> None:
            nonlocal done
            while len(waiting) > down_to:
                key, last, future = waiting.popleft()
                for sums in future.result():
                    self.diagnostics.take(key, sums)
                if last:
                    done += 1
                    progress(done, total)

        with (
            one_thread_a_call(),
            ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            try:
                for output in self.plan.outputs:
                    tasks = list(self._tasks(output))
                    # Merges of the tensors before run while this one is surveyed.
                    survey = self._survey(pool, output, tasks)
                    for task in tasks:
                        waiting.append((output.key, task is tasks[-1], pool.submit(self._merge, task, survey)))
                    collect(4 * self.threads)
                collect(0)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _tasks(self, output: Output) -> Iterator[Task]:
        treatment = self.treatment_of(output.key)
        size = output.size
        block = max(1, size) if treatment.rule.whole_tensors else BLOCK
        num_blocks = max(1, -(-size // block))
        for first in range(0, num_blocks, _BLOCKS_A_TASK):
            yield Task(output, treatment, first, min(num_blocks, first + _BLOCKS_A_TASK), block)

    # -- statistics first ------------------------------------------------------------------------------

    def _survey(self, pool: ThreadPoolExecutor, output: Output, tasks: list[Task]) -> Any:
        treatment = tasks[0].treatment
        rule, size = treatment.rule, output.size
        if not rule.surveys or not self._is_float(output) or size == 0:
            return None
        attempt = 0
        while True:
            idea = rule.prepare(self._sample(tasks[0], size), size, attempt) if rule.sample_size else None
            parts = [part for found in pool.map(self._scan, tasks, repeat(idea)) for part in found]
            settled = rule.settle(parts, idea, size, [share.weight for share in treatment.shares])
            if settled is not None:
                return settled
            attempt += 1

    def _scan(self, task: Task, idea: Any) -> list[Any]:
        found = []
        for number, block in enumerate(self._blocks(task), task.first):
            total = float(block.branches.sum()) + (float(block.start.sum()) if block.start is not None else 0.0)
            self._check(task.output.key, number * task.block, block.branches.shape[1], total)
            found.append(task.treatment.rule.scan(block, idea))
        return found

    def _sample(self, task: Task, size: int) -> Block:
        """Evenly spaced values of a tensor, at a stride that visits every column; all of them if they are few."""
        key, rule = task.output.key, task.treatment.rule
        columns = task.output.shape[-1] if task.output.shape else 1
        stride = max(1, size // rule.sample_size)
        while stride > 1 and math.gcd(stride, columns) > 1:
            stride -= 1
        if size <= 4 * rule.sample_size:
            stride = 1
        rows = torch.stack([model.sample(self.files, key, stride) for model in self._read_by(rule)])
        return self._block_of(task, rows, 0, None)

    # -- merging ---------------------------------------------------------------------------------------

    def _merge(self, task: Task, survey: Any) -> list[Sums]:
        """Merge and write a task's blocks; the sums of each."""
        if not self._is_float(task.output):
            self._copy(task.output)
            return []
        found = []
        rule = task.treatment.rule
        for number, block in enumerate(self._blocks(task), task.first):
            offset, count = number * task.block, block.branches.shape[1]
            block.survey = survey
            self._compare_tied(task, offset, count)
            before = self._before(task, block, number)  # the rule may overwrite what it is given
            if before is not None:
                self._check(task.output.key, offset, count, before.sums.start + sum(before.sums.squares))
            if rule.whole_tensors:
                self._check(task.output.key, offset, count, float(block.branches.sum()))
            merged = rule.merge(block)
            if not rule.needs_start:  # a combination of all branches, finite only if all of them are
                self._check(task.output.key, offset, count, float(merged.sum()))
            self._write(task.output, offset, merged, block)
            if before is not None:
                found.append(before.and_merged(merged))
        return found

    def _before(self, task: Task, block: Block, number: int) -> Before | None:
        """The sums of a block, but for the merge's own; None without a start to measure from."""
        if self.plan.start is None:
            return None
        size, count = task.output.size, block.branches.shape[1]
        if block.start is not None and block.updates is None:  # a whole tensor, of which updates are made run by run
            runs = (slice(offset, offset + BLOCK) for offset in range(0, count, BLOCK))
            parts = (sums_of(block.start[run], block.branches[:, run] - block.start[run]) for run in runs)
            return Before(reduce(add, parts), block.start, 0, 1.0)
        chosen = sampled(size, number, count, BLOCK)
        if block.start is not None and block.updates is not None:
            common = common_of(block.updates[:, chosen[0] : chosen[1]], chosen[2]) if chosen is not None else None
            return Before(Sums(*squares_of(block.start, block.updates), 0.0, common), block.start, 0, 1.0)
        if chosen is None:
            return None
        first, last, times = chosen
        start = self._buffer("start", (last - first,))
        self.plan.start.load(self.files, task.output.key, number * task.block + first, start)
        updates = torch.sub(
            block.branches[:, first:last], start, out=self._buffer("updates", (len(block.branches), last - first))
        )
        common = common_of(updates, times)
        squares = [times * common.products[branch, branch] for branch in range(len(updates))]
        sums = Sums(times * float(start.dot(start)), squares, 0.0, common)
        return Before(sums, start, first, times)

    def _write(self, output: Output, offset: int, merged: torch.Tensor, block: Block) -> None:
        rounded = self._buffer(f"rounded {output.dtype}", merged.shape, DTYPES[output.dtype])
        self.writer.write(output.key, offset, rounded.copy_(merged))
        if self.state_writer is not None:
            assert block.new_state is not None, f"{output.key}: a rule that keeps state gave none"
            self.state_writer.write(output.key, offset, block.new_state.to(torch.float32))

    def _blocks(self, task: Task) -> Iterator[Block]:
        size = task.output.size
        for number in range(task.first, task.last):
            offset = number * task.block
            end = min(size, offset + task.block)
            if end == offset:
                continue
            models = self._read_by(task.treatment.rule)
            rows = self._buffer("rows", (len(models), end - offset))
            for row, model in zip(rows, models, strict=True):
                model.load(self.files, task.output.key, offset, row)
            yield self._block_of(task, rows, number, self._state_values(task.output.key, offset, end))

    def _read_by(self, rule: Rule) -> list[BranchFiles]:
        """Whose whole tensors a rule reads: the branches', after the start's if it works on updates."""
        return [self.plan.start, *self.plan.branches] if rule.needs_start and self.plan.start else self.plan.branches

    def _block_of(self, task: Task, rows: torch.Tensor, number: int, state: torch.Tensor | None) -> Block:
        key, shares, rule = task.output.key, task.treatment.shares, task.treatment.rule
        start, branches = (rows[0], rows[1:]) if rule.needs_start else (None, rows)
        updates = None
        if start is not None and not rule.whole_tensors:
            updates = torch.sub(branches, start, out=self._buffer("updates", branches.shape))

        def kept(branch: int, density: float) -> torch.Tensor:
            return drawn(derive_seed("merge", self.seed, key, branch), number * BLOCK, branches.shape[1], density)

        return Block(
            key, task.output.shape, start, branches, updates, [share.weight for share in shares],
            [share.own for share in shares] if any(share.own for share in shares) else (), None, state,
            self.state.metadata if self.state is not None else {}, None, kept,
        )  # fmt: skip

    def _state_values(self, key: str, offset: int, end: int) -> torch.Tensor | None:
        if self.state is None:
            return None
        return self.state.load(self.files, key, offset, self._buffer("state", (1, end - offset))[0])

    def _buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """A thread's own scratch of a name, grown when needed; a name has one type."""
        held: torch.Tensor | None = getattr(self._scratch, name, None)
        size = math.prod(shape)
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=dtype)
            setattr(self._scratch, name, held)
        return held[:size].view(*shape)

    # -- checks on the way -----------------------------------------------------------------------------

    def _check(self, key: str, offset: int, count: int, total: float) -> None:
        """Look for a value that is not finite where a sum over values is not; of float64 inputs it may just be large."""
        if math.isfinite(total):
            return
        values = torch.empty(count, dtype=torch.float64)
        for model in self._models:
            if not bool(torch.isfinite(model.load(self.files, key, offset, values)).all()):
                raise MergeError(
                    f"branch {model.name!r}: {key} holds NaN or infinity; expected finite weights; nothing was "
                    "merged: look at that branch's training log, lower its learning rate"
                )

    def _compare_tied(self, task: Task, offset: int, count: int) -> None:
        key = task.output.key
        for model in self._models:
            if key in model.aliases:
                pair = (
                    self.files.flat(entry)[offset : offset + count]
                    for entry in (model.entries[key], model.aliases[key])
                )
                if not torch.equal(*pair):
                    raise MergeError(
                        f"branch {model.name!r}: its config ties the head to {key}, but the file's head differs from it; "
                        "which of both is the model? Set tie_word_embeddings to false in its config, or remove the head"
                    )

    def _is_float(self, output: Output) -> bool:
        return output.dtype in FLOATS

    def _copy(self, output: Output) -> None:
        """Integers have no mean: they must be the same in every branch, and are carried over."""
        values = self.files.flat(self.plan.branches[0].entries[output.key])
        for branch in self.plan.branches[1:]:
            if not torch.equal(values, self.files.flat(branch.entries[output.key])):
                raise MergeError(
                    f"branch {branch.name!r}: {output.key} is of type {output.dtype} and differs from branch "
                    f"{self.plan.branches[0].name!r}'s; only floating point can be merged"
                )
        self.writer.write(output.key, 0, values)


def drawn(seed: int, offset: int, count: int, density: float) -> torch.Tensor:
    """Draws `[offset, offset + count)` of a stream, True with probability `density` (to 2⁻³²); `offset` is even.

    SplitMix64 (Steele et al. 2014) of the position, whose halves are two draws: a stream that no library's version
    changes, that starts anywhere, and that numpy computes without holding the interpreter.
    """
    first = offset // 2 + 1
    bits = np.arange(first, first + (count + 1) // 2, dtype=np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits += np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    halves = bits.astype("<u8", copy=False).view("<u4")[:count]
    return torch.from_numpy(halves < np.uint32(int(density * 2**32)))


@contextmanager
def one_thread_a_call() -> Iterator[None]:
    """Torch's own threads off for a while: ours share out the work. The setting is OpenMP's, a thread's own, so each
    thread of the pool makes it too; else theirs spin against one another, and a merge takes up to five times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
