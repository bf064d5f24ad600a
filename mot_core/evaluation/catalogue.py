"""Benchmarks by name: what a published evaluation asks, as fields of a `Benchmark`.

`evaluation.benchmarks: [{benchmark: aime24}, {benchmark: math-500, file: ./math500.jsonl, k: 1}]`: an entry's fields
stand under those that the spec gives. Invariant: a name is looked up when a spec is read and leaves nothing but fields,
which the run's spec.yaml holds and identity follows from; a later catalogue changes no spec that was read before.

Where a figure comes from stands at the entry. Temperature 0.6, top_p 0.95 and 32,768 tokens are second-hand for this paper
(arXiv 2509.08814 does not say): they are DeepSeek-R1's (arXiv 2501.12948), which estimates pass@1 from 64 samples a question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mot_core.lab.families import HOME, PANEL

BOXED = "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTER = (
    "{question}\n\nPlease reason step by step, and put the letter of your answer (A, B, C or D), and nothing else, within "
    "\\boxed{}."
)
LONG: Mapping[str, Any] = {"temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 32768}

SOURCES = ("families", "file", "hub", "import_path", "gym")
# What belongs to an entry's own source, and goes with it.
_OF_THE_SOURCE = (*SOURCES, "revision", "config", "data_files")
# How its rows are read and whose they are: a copy, in a file or elsewhere on the hub, has its columns and splits, and a file its licence.
_OF_THE_ROWS = {"file": (), "hub": ("license",)}


@dataclass(frozen=True)
class Entry:
    """One benchmark: the fields of a `Benchmark`, and where they were read."""

    fields: Mapping[str, Any]
    num_problems: int
    """On test; of a hub data set as its card says."""
    cards: tuple[str, ...] = ()
    """The hub ids whose cards its columns and number of rows are from."""
    notes: str = ""
    """Where k is from, and what could not be read."""

    @property
    def source(self) -> str:
        """Where its problems are from, in a few words."""
        fields = self.fields
        if "hub" in fields:
            return str(fields["hub"]) + (f" ({fields['config']})" if "config" in fields else "")
        return f"reasoning-gym {fields['gym']['dataset']}" if "gym" in fields else "the laboratory"


def _laboratory(family: str, role: str) -> Entry:
    fields = {"name": family, "role": role, "families": [family], "num_problems": 300, "seed": 1, "k": 4}
    return Entry(fields, 300, notes="of the preset lab; asked as its models are trained, without a prompt")


def _gym(dataset: str) -> Entry:
    fields = {
        "name": f"gym-{dataset.replace('_', '-')}", "role": "panel", "gym": {"dataset": dataset}, "num_problems": 200,
        "seed": 1, "prompt": BOXED, "grader": "gym", "k": 4, "sampling": LONG, "license": "apache-2.0",
    }  # fmt: skip
    return Entry(fields, 200, notes="number of problems and k are ours; reasoning-gym: arXiv 2505.24760")


CATALOGUE: dict[str, Entry] = {
    "aime24": Entry(
        {
            "name": "aime24", "role": "home", "hub": "AI-MO/aimo-validation-aime",
            "revision": "1f8807dabb2265892a7c2cb5e73d95d25df4507b", "format": "aime",
            "splits": {"dev": "train[:60]", "test": "train[60:]"}, "license": "apache-2.0", "prompt": BOXED,
            "grader": "integer", "k": 16, "sampling": LONG,
        },
        30, ("AI-MO/aimo-validation-aime", "HuggingFaceH4/aime_2024"),
        "dev is AIME 2022 and 2023; that the 90 rows stand by year is unverified (HuggingFaceH4/aime_2024, cut from them, "
        "numbers its rows from 60). k: 64 in DeepSeek-R1's paper; 16 has twice its standard error over samples and costs a "
        "quarter",
    ),
    "aime25": Entry(
        {
            "name": "aime25", "role": "home", "hub": "math-ai/aime25",
            "revision": "563bb8404243c5f09de6ec262f2db674fe5bce9b", "format": "aime", "splits": {"test": "test"},
            "prompt": BOXED, "grader": "integer", "k": 16, "sampling": LONG,
        },
        30, ("math-ai/aime25", "MultiturnRL/AIME25"),
        "no dev: all 30 problems are for final students. The card of math-ai/aime25 was not read: its columns are from code "
        "that reads it and from the copy MultiturnRL/AIME25. k as of aime24",
    ),
    "math-500": Entry(
        {
            "name": "math-500", "role": "panel", "hub": "HuggingFaceH4/MATH-500",
            "revision": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "format": "math-500", "splits": {"test": "test"},
            "prompt": BOXED, "grader": "math", "k": 4, "sampling": LONG,
        },
        500, ("HuggingFaceH4/MATH-500", "macabdul9/MATH-500"),
        "no dev. Its card states no licence; the columns are a copy's. k: 4 in evalhub's recipe for R1 (ysy-phoenix/evalhub, "
        "docs/baseline.md), 1 in many",
    ),
    "gpqa-diamond": Entry(
        {
            "name": "gpqa-diamond", "role": "panel", "hub": "Idavidrein/gpqa", "config": "gpqa_diamond",
            "revision": "633f5ee89ab8ad4522a9f850766b73f62147ffdd", "format": "gpqa", "splits": {"test": "train"},
            "license": "cc-by-4.0", "prompt": LETTER, "grader": "choice", "k": 4, "sampling": LONG,
        },
        198, ("Idavidrein/gpqa",),
        "no dev. Gated: accept its terms on the hub and set HF_TOKEN; it asks that no example is shown in the open. The "
        "revision is from a manifest of others (minjaechoi/twla-gpqa30-eval-manifest). k: 4 in openai/simple-evals "
        "(gpqa_eval.py, n_repeats)",
    ),
    **{family: _laboratory(family, "home") for family in HOME},
    **{family: _laboratory(family, "panel") for family in PANEL},
    **{
        str(entry.fields["name"]): entry
        for entry in map(_gym, ("chain_sum", "base_conversion", "calendar_arithmetic", "knights_knaves"))
    },
}  # fmt: skip


def resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark's fields as the spec gives them, with those of the entry that `benchmark` names under them.

    `sampling` is filled in setting by setting, anything else is taken whole. A source of the spec's own takes the place of
    the entry's, with its revision and configuration. A file is read as the hub's rows are: its one split `train` stands
    for the split of theirs that the entry reads; another data set on the hub is read like them too, and its licence is
    the spec's to say.

    Raises:
        ValueError: no such entry.
    """
    from mot_core.spec import nearest

    name = given["benchmark"]
    if not isinstance(name, str) or name not in CATALOGUE:
        raise ValueError(
            f"benchmark {name!r} is not in the catalogue; {nearest(str(name), CATALOGUE)}known: {', '.join(CATALOGUE)} "
            "(mot benchmarks shows them); for one of your own leave benchmark out, and give name and a source"
        )
    own = {key: value for key, value in given.items() if key != "benchmark"}
    fields = dict(CATALOGUE[name].fields)
    sources = [key for key in SOURCES if own.get(key) is not None]
    if sources:
        gone = {*_OF_THE_SOURCE, *_OF_THE_ROWS.get(sources[0], ("license", "format", "splits"))}
        fields = {key: value for key, value in fields.items() if key not in gone}
    if "file" in sources and "splits" in fields:
        fields["splits"] = {
            ours: re.sub(r"^[^\[]+", "train", theirs) for ours, theirs in dict(fields["splits"]).items()
        }
    if isinstance(own.get("sampling"), Mapping):
        own["sampling"] = {**fields.get("sampling", {}), **own["sampling"]}
    return {**fields, **own}
