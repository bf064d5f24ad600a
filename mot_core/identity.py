"""Names for results: canonical JSON, fingerprints, algorithm versions, derived seeds.

A step's identity is the SHA-256 of its kind, its kind's algorithm version, the spec fields that change its
result, and its parents' identities by role. Never a path, host, clock or log level. Raise a version below
when the same spec gives other results; `tests/test_golden.py` fails when results change without it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

IDENTITY_HEX_DIGITS = 32

ALGORITHM_VERSIONS: dict[str, int] = {
    "problems": 2,
    "overlap": 1,
    "training-problems": 1,
    "completions": 2,
    "verdicts": 2,
    "judgements": 1,
    "corpora": 2,
    "shuffled-corpora": 1,
    "branch": 1,
    "on-policy": 1,
    "merge": 1,
    "evaluation": 2,
    "harness": 1,
    "confidence": 1,
    "landscape": 1,
}


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no white space, shortest floats, no NaN.

    Raises:
        TypeError: a value without a stable text (a callable, a set, an object), with its place and the remedy.
    """
    _refuse_unstable(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """The identity of a JSON value: `IDENTITY_HEX_DIGITS` hex digits of SHA-256 over its canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:IDENTITY_HEX_DIGITS]


def step_identity(kind: str, spec: Mapping[str, Any], parents: Iterable[tuple[str, str]]) -> str:
    """The identity of a step from its kind, spec and `(role, identity)` of each parent, in order."""
    if kind not in ALGORITHM_VERSIONS:
        raise KeyError(f"step kind {kind!r} has no algorithm version; add it to ALGORITHM_VERSIONS")
    return fingerprint(
        {
            "kind": kind,
            "version": ALGORITHM_VERSIONS[kind],
            "spec": dict(spec),
            "parents": [list(parent) for parent in parents],
        }
    )


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2⁶³) that depends on every part and on nothing else."""
    digest = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _refuse_unstable(value: Any, where: str) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}: not finite, so it has no JSON text; use null for 'absent'")
        return
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_unstable(item, f"{where}[{index}]")
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r} of type {type(key).__name__}; keys must be text")
            _refuse_unstable(item, f"{where}.{key}")
        return
    raise TypeError(
        f"{where} is a {type(value).__name__}: its text is not stable between processes; "
        "give a number, text, list or mapping, or the import path of the function"
    )
