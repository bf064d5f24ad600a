"""Every error that a user can cause or meet, in one tree; each also is the standard type one would catch.

MotError
├── SpecError (ValueError)        a spec, preset or override that is wrong
├── ModelError (ValueError)       a model, tokenizer or chat template that cannot serve
├── ProblemError (ValueError)     problems or benchmarks that cannot be loaded
├── CorpusError (ValueError)      verification or selection left nothing to train on
├── CompletionError (RuntimeError) too many requests failed
├── GradingError (RuntimeError)   too many answers could not be graded
├── TrainingError (RuntimeError)  a branch that diverged
├── MergeError (ValueError)       branches that cannot be merged
├── StoreError (OSError)          a store that cannot be read, written or understood
│   ├── LeaseLost                 another process took over what this one held
│   └── NightUnderWay             another process is at a nightly already
├── WorkerError (RuntimeError)    a worker process that died
└── Halted (RuntimeError)         no failure: a run that was asked to stop has stopped

A message says what went wrong, where, what was expected, what was got, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping


class MotError(Exception):
    """Base of all errors that `mot` raises on purpose."""


class SpecError(MotError, ValueError):
    """A spec that is wrong; raised before any compute is claimed."""


class ModelError(MotError, ValueError):
    """A model, tokenizer or chat template that cannot serve its role."""


class ProblemError(MotError, ValueError):
    """Problems or benchmarks that cannot be loaded."""


class CorpusError(MotError, ValueError):
    """Verification or selection left nothing to train on."""


class CompletionError(MotError, RuntimeError):
    """More requests failed than the spec allows."""


class GradingError(MotError, RuntimeError):
    """More answers could not be graded than the spec allows."""


class TrainingError(MotError, RuntimeError):
    """A branch whose loss or weights stopped being finite, or that has nothing to learn from."""


class MergeError(MotError, ValueError):
    """Branches that cannot be merged into one student."""


class StoreError(MotError, OSError):
    """A store that cannot be read, written or understood."""


class LeaseLost(StoreError):
    """A lease that was taken over because its holder was silent for too long. The other one goes on with the work."""


class NightUnderWay(StoreError):
    """A nightly that another process is at; its digest will come."""


class WorkerError(MotError, RuntimeError):
    """A worker process that died or broke its protocol."""


class Halted(MotError, RuntimeError):
    """A run that was asked to stop, and stopped at the next published step; the same call goes on from there."""


def described(error: BaseException) -> dict[str, str]:
    """An error as text that another process can raise again: its type here, if it has one, and its message."""
    kind = type(error).__name__ if isinstance(error, MotError) else ""
    return {"type": kind, "message": str(error) if kind else f"{type(error).__name__}: {error}"}


def raised(error: Mapping[str, str], prefix: str = "") -> MotError:
    """What `described` told of, to be raised here; `WorkerError` where it was no error of ours."""
    kind: type[MotError] = globals()[error["type"] or "WorkerError"]
    return kind(prefix + error["message"])
