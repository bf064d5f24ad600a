"""Merging branches in weight space into the next student: plan, validate, apply."""

from __future__ import annotations

# By name, without importing torch: specs are checked in processes that never load it.
RULES: dict[str, str] = {
    "mean": "mot_core.merging.rules:weighted_mean",
    "weighted_mean": "mot_core.merging.rules:weighted_mean",
}
