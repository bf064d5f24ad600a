"""Whether models share a tokenizer, and what in one deserves a warning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mot_core.errors import MergeError

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
# Embeddings are padded to round sizes (Qwen3: 151,669 tokens in 151,936 rows); a smaller share is worth a warning.
_FULL = 0.95


def compare_tokenizers(
    first_name: str, first: Path, name: str, directory: Path, strict: bool, any_tokenizer: bool
) -> list[str]:
    """Warnings about how a model's tokenizer or template differs from the first's.

    Raises:
        MergeError: another vocabulary; with `strict`, any difference.
    """
    warnings = []
    for file in (TOKENIZER, TEMPLATE):
        if _digest(first / file) == _digest(directory / file):
            continue
        what = f"branch {name!r}: {file} differs from branch {first_name!r}'s"
        if strict:
            raise MergeError(
                f"{what}; token ids would not mean the same; train every branch with its start's tokenizer"
            )
        if file == TOKENIZER and not any_tokenizer and _tokens(first) != _tokens(directory):
            raise MergeError(
                f"{what}: token ids do not mean the same; to merge all the same, say whose tokenizer the merge takes: "
                "tokenizer: NAME"
            )
        warnings.append(f"{what}; branch {first_name!r}'s is not replaced by it")
    return warnings


def tokenizer_warnings(directory: Path, num_rows: int | None) -> list[str]:
    """What may surprise in the tokenizer that a merge carries over: its size against the embedding's, its template."""
    warnings = []
    tokens = _tokens(directory)
    if tokens is None:
        warnings.append(f"{directory} has no {TOKENIZER}: the merge is written without one")
    elif num_rows is not None and len(tokens) > num_rows:
        warnings.append(f"{directory}: its tokenizer has {len(tokens)} tokens, the embedding {num_rows} rows: too few")
    elif num_rows is not None and len(tokens) < _FULL * num_rows:
        warnings.append(
            f"{directory}: its tokenizer has only {len(tokens)} tokens for {num_rows} rows of the embedding; is it another "
            "model's? Nothing is trimmed"
        )
    if tokens is not None and not has_template(directory):
        warnings.append(f"{directory} has no chat template: chat clients and `mot` need one")
    return warnings


def has_template(directory: Path) -> bool:
    if (directory / TEMPLATE).is_file():
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))


def _tokens(directory: Path) -> dict[str, int] | None:
    """Token → id, of the vocabulary and of what was added to it."""
    path = directory / TOKENIZER
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    vocabulary = document.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: pairs of token and score, by position
        vocabulary = {item[0]: place for place, item in enumerate(vocabulary)}
    return {**vocabulary, **{item["content"]: item["id"] for item in document.get("added_tokens", [])}}


def _digest(path: Path) -> str | None:
    """A hash of a JSON file's content (not its layout), or of another file's bytes; None if it is absent."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if path.suffix == ".json":
        document = json.loads(data)
        # Set by the last call that padded or cut, not by the vocabulary.
        document.pop("padding", None), document.pop("truncation", None)
        data = json.dumps(document, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()
