"""Where a branch keeps what; apart from the training code, so that planning never imports torch."""

from __future__ import annotations


def snapshot_directory(step: int) -> str:
    """Where a branch keeps the student as it was after `step` optimizer steps."""
    return f"snapshots/step-{step}"
