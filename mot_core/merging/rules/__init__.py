"""Merge rules, a small file each with its source. A registered rule sees runs of a tensor (`Block`) and so needs no
whole tensor in memory; a rule of your own is a function of whole tensors, by import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mot_core.errors import SpecError
from mot_core.merging import RULES
from mot_core.merging.rules.base import Block, Rule
from mot_core.merging.rules.custom import Custom
from mot_core.steps import load_object

__all__ = ["Block", "Rule", "rule_class", "rule_named"]


def rule_class(name: str) -> type[Rule]:
    """The class behind a registered name; `Custom` for an import path."""
    found: type[Rule] = load_object(RULES[name], f"merge rule {name!r}") if name in RULES else Custom
    return found


def rule_named(name: str, parameters: Mapping[str, Any] | None = None) -> Rule:
    """A rule with its parameters.

    Raises:
        SpecError: a parameter that the rule does not have, or a value that it refuses.
    """
    kind = rule_class(name)
    given = dict(parameters or {})
    if kind is Custom:
        return Custom(import_path=name, arguments=given)
    try:
        return kind(**given)
    except ValidationError as error:
        fields = ", ".join(kind.model_fields) or "none"
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise SpecError(
            f"parameters of merge rule {name!r}: {'; '.join(lines)}; got {given}, the rule's parameters: {fields}"
        ) from None
