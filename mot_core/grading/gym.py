"""The grader `gym`: reasoning-gym's own scorers. In a module of its own, whose import is not an answer's time."""

from __future__ import annotations

import reasoning_gym  # type: ignore[import-untyped, unused-ignore]  # noqa: F401  (a worker loads it before its first answer)

from mot_core.gym import is_right


def same_gym(family: str, gold: str, answer: str) -> bool:
    """The data set scores the answer 1, in the form that its question asks for; parts of its credit do not count."""
    return is_right(gold, answer)
