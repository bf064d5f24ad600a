"""Which examples a probe reads: a draw over problems that depends on seed and problem alone.

Invariant: corpora of the same problems give the same problems, whichever teachers, students or order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mot_core.corpus.tables import read_corpus
from mot_core.errors import CorpusError
from mot_core.identity import derive_seed
from mot_core.sft.tokens import Example, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = dict[str, dict[str, Any]]


def problems_of_all(
    tokenizer: PreTrainedTokenizerBase, directory: Path, spec: Mapping[str, Any]
) -> tuple[dict[str, Rows], list[dict[str, Example]]]:
    """`(rows by corpus and problem, examples by corpus of each problem chosen)`: problems that every corpus holds, up to
    `num_examples` of them.

    Raises:
        CorpusError: a corpus is missing, or they share no problem within the limit.
    """
    rows = {name: _first_rationales(directory, name) for name in spec["corpora"]}
    shared = set.intersection(*(set(own) for own in rows.values()))
    chosen: list[dict[str, Example]] = []
    for problem in _drawn(shared, spec["seed"]):
        if len(chosen) == spec["num_examples"]:
            break
        examples = {name: tokenize(tokenizer, own[problem]) for name, own in rows.items()}
        if all(_fits(example, spec) for example in examples.values()):
            chosen.append(examples)
    if not chosen:
        raise CorpusError(
            f"probe of corpora {spec['corpora']}: they share {len(shared)} problems, none with every rationale within "
            f"max_example_tokens = {spec.get('max_example_tokens')}; use matched corpora, or raise the limit"
        )
    return rows, chosen


def examples_of_each(tokenizer: PreTrainedTokenizerBase, directory: Path, spec: Mapping[str, Any]) -> list[Example]:
    """Up to `num_examples` examples of each corpus, a problem once a corpus.

    Raises:
        CorpusError: a corpus is missing, or holds no example within the limit.
    """
    chosen: list[Example] = []
    for name in spec["corpora"]:
        rows, own = _first_rationales(directory, name), list[Example]()
        for problem in _drawn(rows, spec["seed"]):
            if len(own) == spec["num_examples"]:
                break
            example = tokenize(tokenizer, rows[problem])
            if _fits(example, spec):
                own.append(example)
        if not own:
            raise CorpusError(
                f"probe of corpus {name}: none of its {len(rows)} problems has a rationale within max_example_tokens = "
                f"{spec.get('max_example_tokens')}; raise the limit"
            )
        chosen += own
    return chosen


def _first_rationales(directory: Path, name: str) -> Rows:
    """A corpus's first row of each problem."""
    path = directory / f"{name}.parquet"
    if not path.is_file():
        held: Sequence[str] = sorted(file.stem for file in directory.glob("*.parquet"))
        raise CorpusError(f"probe: there is no corpus {name!r}; the corpora step holds {held}")
    rows: Rows = {}
    for row in read_corpus(path):
        rows.setdefault(row["problem_id"], row)
    return rows


def _drawn(problems: Iterable[str], seed: int) -> list[str]:
    return sorted(problems, key=lambda problem: (derive_seed("probe", seed, problem), problem))


def _fits(example: Example, spec: Mapping[str, Any]) -> bool:
    limit = spec.get("max_example_tokens")
    return limit is None or len(example.input_ids) <= limit
