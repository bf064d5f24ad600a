"""The method: Merge-of-Thought distillation, free of orchestrator and tracker."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Late, so that `import mot_core` costs nothing where only a command's help is wanted.
    if name == "load_results":
        from mot_core.tables import load_results

        return load_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
