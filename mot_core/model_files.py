"""What a checkpoint folder may hold: weights as safetensors, and no pickle, whose loading would run its code.

Invariant: every folder that weights or a tokenizer are read from has passed `check_model_files`: those that a spec or
recipe names, and those that steps made. Of a hub's repository only `mot_core.models.MODEL_FILES` are fetched.
"""

from __future__ import annotations

import json
from pathlib import Path

from mot_core.errors import ModelError

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"})
"""Suffixes under which torch, transformers and others save pickles: pytorch_model.bin, optimizer.pt, rng_state.pth …"""
INDEX_SUFFIX = ".safetensors.index.json"


def check_model_files(directory: Path, where: str) -> None:
    """
    Raises:
        ModelError: the folder holds a pickle, or an index that names other files than safetensors beside it.
    """
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix.lower() in PICKLES)
    if pickles:
        shown = ", ".join(pickles[:5]) + (f" and {len(pickles) - 5} more" if len(pickles) > 5 else "")
        raise ModelError(
            f"{where}: {directory} holds {shown}: a pickle runs code when it is loaded, so a checkpoint folder that has "
            "one is refused; expected weights as *.safetensors; move the rest away, or save the model with safetensors"
        )
    for index in directory.glob(f"*{INDEX_SUFFIX}"):
        for file in _indexed(index, where):
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ModelError(
                    f"{where}: {index} names {file!r}; expected the name of a *.safetensors file beside it; save the "
                    "model again"
                )


def _indexed(index: Path, where: str) -> set[object]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{where}: {index} cannot be read as an index of weights ({type(error).__name__}: {error}); save the model "
            "again"
        ) from None
