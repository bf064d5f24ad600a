"""The model card of a merge: what was merged, how, from where; in the form that the hub reads. No clocks, no places:
the same merge gives the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

CARD = "README.md"


@dataclass(frozen=True)
class Lineage:
    """One input of a merge, by a name that means something elsewhere: a hub id, a step's identity, a file's name."""

    name: str
    origin: str
    weight: float | None = None


def card_text(
    rule: str, source: str, parameters: Mapping[str, Any], start: Lineage | None, branches: Sequence[Lineage],
    facts: Mapping[str, Any],
) -> str:  # fmt: skip
    """The card. `base_model` lists hub ids only, since the hub resolves it."""
    hub_ids = [one.origin for one in [*([start] if start else []), *branches] if one.origin.count("/") == 1]
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "mot"]}
    if hub_ids:
        front |= {"base_model": sorted(set(hub_ids)), "base_model_relation": "merge"}
    rows = [
        f"| {one.name} | `{one.origin}` | {'' if one.weight is None else f'{one.weight:.6g}'} |" for one in branches
    ]
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", "# A merged model", "",
        f"Rule `{rule}`: {source}." + (f" Parameters: {_listed(parameters)}." if parameters else ""), "",
        f"Start: `{start.origin}`." if start else "No start: the rule averages the branches themselves.", "",
        "| branch | origin | weight |", "| --- | --- | --- |", *rows, "",
        "Summed in float64 and rounded once.", "",
    ]  # fmt: skip
    if facts:
        lines += ["| measured | |", "| --- | --- |"]
        lines += [
            f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"
            for name, value in facts.items()
        ]
        lines += [""]
    return "\n".join(lines)


def _listed(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())
