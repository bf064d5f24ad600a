"""The methods that an experiment compares, one small file each, each one entry here.

A method is a function `method(setting, do) -> list[Distilled]`: it builds the steps that train its students, hands
them to `do`, and says where on their paths the students stand. To bring your own, give an entry of `methods` an
`import_path: package.module:function`.
"""

from __future__ import annotations

from mot_core.methods.base import Distilled, Method, Setting
from mot_core.spec import Method as MethodSpec
from mot_core.steps import load_object

METHODS: dict[str, str] = {
    "base": "mot_core.methods.baselines:base",
    "std": "mot_core.methods.baselines:std",
    "mtd": "mot_core.methods.baselines:mtd",
    "merge_once": "mot_core.methods.merged:merge_once",
    "mot": "mot_core.methods.merged:mot",
    "shuffled": "mot_core.methods.merged:shuffled",
    "splits": "mot_core.methods.merged:splits",
    "shrunk": "mot_core.methods.merged:shrunk",
    "opd": "mot_core.methods.on_policy:opd",
    "mot_opd": "mot_core.methods.on_policy:mot_opd",
    # Nothing is trained: its votes are counted from the STD students' samples (mot_core.evaluation.ensemble).
    "ensemble": "mot_core.methods.baselines:ensemble",
}


def method_named(entry: MethodSpec) -> Method:
    """The function behind an entry of `methods`."""
    method: Method = load_object(entry.import_path or METHODS[entry.builtin], f"method {entry.name!r}")
    return method


__all__ = ["METHODS", "Distilled", "Method", "Setting", "method_named"]
