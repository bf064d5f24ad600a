"""The baselines (paper, baselines): no training, one teacher (STD), the union of teachers (MTD)."""

from __future__ import annotations

from mot_core.dag import Do, StudentAt, round_at
from mot_core.methods.base import Distilled, Setting
from mot_core.sft.places import snapshot_directory
from mot_core.steps import Step


def base(setting: Setting, do: Do) -> list[Distilled]:
    """The untrained student."""
    return [Distilled(setting.name, {0: setting.start}, {0: 0}, final_round=0)]


def std(setting: Setting, do: Do) -> list[Distilled]:
    """Single-teacher distillation, one run a teacher: T × S steps, or K × T × S under matched compute."""
    return [_one_path(setting, do, f"{setting.name}/{name}", [name], teacher=name) for name in setting.teachers]


def mtd(setting: Setting, do: Do) -> list[Distilled]:
    """Multi-teacher distillation on the union of all corpora, with STD's number of steps."""
    return [_one_path(setting, do, setting.name, setting.teachers, teacher=None)]


def ensemble(setting: Setting, do: Do) -> list[Distilled]:
    """The vote of the STD students; nothing is trained."""
    return []


def _one_path(setting: Setting, do: Do, label: str, names: list[str], *, teacher: str | None) -> Distilled:
    # MoT's branches are the experiment's teachers, whoever of them teaches here.
    factor = len(setting.spec.teachers) if setting.budget == "matched_compute" else 1
    num_steps = factor * setting.path_length
    what = teacher or "union"
    branch = setting.full_branch(
        names, num_steps=num_steps, teacher=teacher,
        label=f"finetune {what}{_variant(setting)}, {num_steps} steps, seed {setting.seed}",
    )  # fmt: skip
    do(branch)
    final_round = setting.spec.rounds if num_steps > setting.path_length else None
    return Distilled(
        label, *_stops(setting, branch, num_steps), branches=(branch,), teacher=teacher, final_round=final_round
    )


def _stops(setting: Setting, branch: Step, num_steps: int) -> tuple[dict[float, StudentAt], dict[float, int]]:
    """Where a path without rounds stands at each step that was kept, by its place among rounds, and at its end."""
    kept, last = branch.spec["snapshot_steps"], setting.spec.rounds
    rounds = {round_at(setting.spec, step): StudentAt(branch, snapshot_directory(step)) for step in kept}
    path_steps = {round_at(setting.spec, step): step for step in kept}
    return {**rounds, last: StudentAt(branch)}, {**path_steps, last: num_steps}


def _variant(setting: Setting) -> str:
    return "" if setting.name in ("std", "mtd") else f", {setting.name}"
