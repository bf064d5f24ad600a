"""The embedded laboratory: small real models and problem families, so that every claim can be run on a CPU.

Three teachers that reason in different ways, two students of different size that have yet to learn, and
graders that check; and as many models again of a later laboratory, to which nothing was tuned. Forged by
`mot_core.lab.forge` from the recipes in `mot_core.lab.recipe`. Invariant: importing this package loads neither
torch nor transformers.
"""

from __future__ import annotations

import difflib
from pathlib import Path

TEACHERS: tuple[str, ...] = ("running-total", "gains-and-losses", "tens-and-ones")
STUDENTS: tuple[str, ...] = ("student-small", "student-tiny")
LATER_TEACHERS: tuple[str, ...] = ("clock-running", "hours-and-minutes", "all-minutes")
LATER_STUDENTS: tuple[str, ...] = ("student-clock",)
LAB_MODELS: tuple[str, ...] = (*TEACHERS, *STUDENTS, *LATER_TEACHERS, *LATER_STUDENTS)

WEIGHTS_DIR: Path = Path(__file__).resolve().parent / "weights"

__all__ = ["LAB_MODELS", "LATER_STUDENTS", "LATER_TEACHERS", "STUDENTS", "TEACHERS", "WEIGHTS_DIR", "lab_model_path"]


def lab_model_path(name: str) -> Path:
    """The Hugging Face directory of an embedded model; ValueError for an unknown name, with a hint."""
    if name not in LAB_MODELS:
        near = difflib.get_close_matches(name, LAB_MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "correct the name"
        raise ValueError(f"unknown laboratory model {name!r}: expected one of {', '.join(LAB_MODELS)}; {hint}")
    path = WEIGHTS_DIR / name
    if not (path / "model.safetensors").is_file():
        raise ValueError(f"laboratory model {name!r}: no weights in {path}; run python -m mot_core.lab.forge")
    return path
