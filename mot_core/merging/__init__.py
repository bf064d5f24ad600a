"""Merging branches in weight space into the next student: plan, validate, apply. See docs/merging.md.

Invariant: importing this package, or its rules, loads no torch: specs are checked in processes that never load it.
"""

from __future__ import annotations

# By name, so that a rule's module is loaded when it is asked for.
RULES: dict[str, str] = {
    "mean": "mot_core.merging.rules.mean:Mean",
    "weighted_mean": "mot_core.merging.rules.mean:Mean",
    "task_arithmetic": "mot_core.merging.rules.task_arithmetic:TaskArithmetic",
    "ties": "mot_core.merging.rules.ties:Ties",
    "dare": "mot_core.merging.rules.dare:Dare",
    "dare_ties": "mot_core.merging.rules.dare:DareTies",
    "slerp": "mot_core.merging.rules.slerp:Slerp",
    "interpolate": "mot_core.merging.rules.interpolate:Interpolate",
    "outer": "mot_core.merging.rules.outer:Outer",
    "ema": "mot_core.merging.rules.ema:Ema",
}
