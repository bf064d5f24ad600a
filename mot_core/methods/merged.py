"""The methods that merge: MoT itself, its one-shot variant, and the controls that take something away from it."""

from __future__ import annotations

from dataclasses import replace

from mot_core.dag import Do, StudentAt, branch_step, merge_step, shuffled_corpora_step
from mot_core.methods.base import Distilled, Setting
from mot_core.spec import Merge
from mot_core.steps import Step


def mot(setting: Setting, do: Do) -> list[Distilled]:
    """Merge-of-Thought (paper, method): T rounds of one branch a teacher, then a merge."""
    corpora = {name: name for name in setting.teachers}
    return [_alternate(setting, do, setting.name, setting.corpora, corpora, _qualities(setting))]


def shuffled(setting: Setting, do: Do) -> list[Distilled]:
    """MoT's loop on random parts of the union: the same data and merges, but no branch has a teacher of its own."""
    parts = shuffled_corpora_step(setting.corpora, setting.teachers, setting.seed)
    do(parts)
    # A part takes a teacher's place only so that merge weights by teacher keep their meaning as positions.
    corpora = {name: f"part-{index + 1}" for index, name in enumerate(setting.teachers)}
    return [_alternate(setting, do, setting.name, parts, corpora, _qualities(setting))]


def splits(setting: Setting, do: Do) -> list[Distilled]:
    """MoT's loop on random parts of one teacher's corpus, as many as there are teachers: branching and merging without a
    second teacher (the reviewers' question whether consensus is more than averaging). A student a teacher."""
    num_parts = len(setting.teachers)
    # Parts of one corpus are alike: weights that belong to teachers have no meaning for them.
    own = setting.spec.merge
    merge = Merge(barrier=own.barrier) if own.weights is not None or own.weights_by is not None else own
    paths = []
    for name in setting.teachers:
        parts = shuffled_corpora_step(setting.corpora, [name], setting.seed, num_parts)
        do(parts)
        corpora = {f"part-{index + 1}": f"part-{index + 1}" for index in range(num_parts)}
        path = _alternate(setting, do, f"{setting.name}/{name}", parts, corpora, None, merge)
        paths.append(replace(path, teacher=name))
    return paths


def shrunk(setting: Setting, do: Do) -> list[Distilled]:
    """Each STD student with its update divided by the number of teachers: θ₀ + (θ_STD − θ₀) / K. What is left of a
    merge's effect if averaging did nothing but shrink one teacher's update. No step of its own is trained."""
    last, merge = setting.spec.rounds, Merge(rule="task_arithmetic", parameters={"scale": 1.0 / len(setting.teachers)})
    paths = []
    for name in setting.teachers:
        branch = setting.full_branch(
            [name], num_steps=setting.path_length, teacher=name,
            label=f"finetune {name}, {setting.path_length} steps, seed {setting.seed}",
        )  # fmt: skip
        do(branch)
        label = f"{setting.name}/{name}"
        merged = merge_step(
            setting.spec, setting.start, {name: branch}, label=f"shrink {name}, seed {setting.seed}",
            facts={"method": label, "seed": setting.seed, "round": last, "budget": setting.budget},
            corpora=setting.corpora, corpus_names=[name], merge=merge,
        )  # fmt: skip
        do(merged)
        paths.append(
            Distilled(
                label, {last: StudentAt(merged)}, {last: setting.path_length}, (branch,), ((last, merged),), name, last
            )
        )
    return paths


def merge_once(setting: Setting, do: Do) -> list[Distilled]:
    """One-shot merge: K branches trained apart for the full length, merged once at the end."""
    branches = {
        name: setting.full_branch(
            [name], num_steps=setting.path_length, teacher=name,
            label=f"finetune {name}, {setting.path_length} steps, seed {setting.seed}",
        )
        for name in setting.teachers
    }  # fmt: skip
    for branch in branches.values():
        do(branch)
    last = setting.spec.rounds
    merged = merge_step(
        setting.spec, setting.start, branches, label=f"merge once, seed {setting.seed}",
        facts={"method": setting.name, "seed": setting.seed, "round": last, "budget": setting.budget},
        round_index=last, seed=setting.seed, corpora=setting.corpora, corpus_names=setting.teachers,
        qualities=_qualities(setting),
    )  # fmt: skip
    do(merged)
    return [
        Distilled(
            setting.name, {last: StudentAt(merged)}, {last: setting.path_length}, tuple(branches.values()),
            ((last, merged),), final_round=last,
        )
    ]  # fmt: skip


def _alternate(
    setting: Setting, do: Do, method: str, corpora: Step, corpus_of: dict[str, str],
    qualities: dict[str, Step] | None, merge: Merge | None = None,
) -> Distilled:  # fmt: skip
    """θₜ ← Σₖ wₖ SFT(θₜ₋₁, D_k) for t = 1…T; `merge`, where given, in place of the spec's."""
    spec, student = setting.spec, setting.start
    rounds: dict[float, StudentAt] = {}
    all_branches: list[Step] = []
    merges: list[tuple[int, Step]] = []
    for round_index in range(1, spec.rounds + 1):
        where = f"round {round_index}, seed {setting.seed}"
        facts = {"method": method, "round": round_index, "budget": setting.budget}
        branches = {
            teacher: branch_step(
                spec, student, corpora, [corpus], learning_rate=setting.learning_rate, seed=setting.seed,
                first_step=(round_index - 1) * spec.steps_per_round, num_steps=spec.steps_per_round,
                total_steps=setting.path_length, snapshot_steps=[],
                label=f"finetune {corpus}, {method} {where}", facts={**facts, "teacher": corpus},
            )
            for teacher, corpus in corpus_of.items()
        }  # fmt: skip
        for branch in branches.values():
            do(branch)
        merged = merge_step(
            spec, student, branches, label=f"merge, {method} {where}", facts={**facts, "seed": setting.seed},
            round_index=round_index, seed=setting.seed, previous=merges[-1][1] if merges else None, corpora=corpora,
            corpus_names=list(corpus_of.values()), qualities=qualities, merge=merge,
        )  # fmt: skip
        do(merged)
        student = StudentAt(merged)
        rounds[round_index] = student
        all_branches += branches.values()
        merges.append((round_index, merged))
    path_steps: dict[float, int] = {r: r * spec.steps_per_round for r in range(1, spec.rounds + 1)}
    return Distilled(method, rounds, path_steps, tuple(all_branches), tuple(merges))


def _qualities(setting: Setting) -> dict[str, Step] | None:
    """Each teacher's verdicts, where merge weights follow them. A shuffled part is weighed as the teacher whose place
    it takes."""
    if setting.spec.merge.weights_by is None:
        return None
    return {name: setting.corpora.parent(f"verdicts/{name}") for name in setting.teachers}
