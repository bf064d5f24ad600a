"""On-policy distillation from all teachers, the strongest rival of merging: from the start, and after MoT.

Budgets. With P parameters of the student, P_k of teacher k and N tokens a step, a step of fine-tuning costs 6 P N FLOPs, an
on-policy one 2 P N to sample, 6 P N to train and 2 P_k N for each teacher's reading. `matched_path` gives T × S steps;
`matched_compute` as many as cost what MoT's K × T × S steps do at equal tokens a step, rounded up:

    ⌈ 6 P K T S / (8 P + 2 Σ P_k) ⌉      with teachers of the student's size: ⌈ 6 K / (8 + 2 K) × T S ⌉

K is the number of the experiment's teachers, which are MoT's branches; the sum is over those who teach here.
"""

from __future__ import annotations

from dataclasses import replace

from mot_core.architectures import architecture_of
from mot_core.dag import Do, StudentAt, on_policy_step, path_snapshots, round_at
from mot_core.methods.base import Distilled, Setting
from mot_core.methods.merged import mot
from mot_core.sft.places import snapshot_directory
from mot_core.spec import Method as MethodSpec
from mot_core.steps import ModelRef, Step


def opd(setting: Setting, do: Do) -> list[Distilled]:
    """On-policy distillation of the untrained student (GKD, arXiv 2306.13649, with several teachers)."""
    num_steps, spec, last = _num_steps(setting), setting.spec, setting.spec.rounds
    kept = path_snapshots(spec, setting.name) if num_steps == setting.path_length else []
    trained = _train(setting, do, setting.start, num_steps, first_step=0, round_index=0, snapshot_steps=kept)
    rounds = {round_at(spec, step): StudentAt(trained, snapshot_directory(step)) for step in kept}
    path_steps = {round_at(spec, step): step for step in kept}
    return [
        Distilled(
            setting.name, {**rounds, last: StudentAt(trained)}, {**path_steps, last: num_steps}, (trained,),
            final_round=None if num_steps == setting.path_length else last,
        )
    ]  # fmt: skip


def mot_opd(setting: Setting, do: Do) -> list[Distilled]:
    """MoT's T rounds, then on-policy steps from its last student, as one round more. The rounds are method mot's own, at its
    learning rate and training; the cost is MoT's and opd's together."""
    (before,) = mot(_as_mot(setting), do)
    num_steps, last = _num_steps(setting), setting.spec.rounds
    first_step, after = before.path_steps[last], last + 1
    trained = _train(
        setting, do, before.rounds[last], num_steps, first_step=first_step, round_index=after, snapshot_steps=[]
    )
    return [
        replace(
            before, label=setting.name, rounds={**before.rounds, after: StudentAt(trained)},
            path_steps={**before.path_steps, after: first_step + num_steps}, branches=(*before.branches, trained),
            final_round=after,
        )
    ]  # fmt: skip


def _as_mot(setting: Setting) -> Setting:
    """The setting in which method mot runs: with its entry's rate and training, and this entry's teachers where it names
    any. Training fields of this entry's own were refused (`mot_core.sft.vocabulary`): they would reach the rounds, too."""
    spec = setting.spec
    own = next(method for method in spec.methods if method.name == setting.name)
    entry = next((method for method in spec.methods if method.name == "mot"), MethodSpec(name="mot"))
    if own.teachers is not None:
        entry = entry.model_copy(update={"teachers": own.teachers})
    methods = (*(method for method in spec.methods if method.name != "mot"), entry)
    changed = spec.model_copy(update={"training": spec.training_of(entry), "methods": methods})
    return replace(setting, name="mot", spec=changed, learning_rate=changed.learning_rate("mot"))


def _train(
    setting: Setting, do: Do, start: StudentAt, num_steps: int, *, first_step: int, round_index: int,
    snapshot_steps: list[int],
) -> Step:  # fmt: skip
    step = on_policy_step(
        setting.spec, setting.world, start, setting.corpora.parent("problems"), setting.teachers,
        learning_rate=setting.learning_rate, seed=setting.seed, first_step=first_step, num_steps=num_steps,
        snapshot_steps=snapshot_steps, label=f"distil on-policy, {setting.name}, {num_steps} steps, seed {setting.seed}",
        facts={"method": setting.name, "teacher": "on-policy", "round": round_index, "budget": setting.budget},
    )  # fmt: skip
    do(step)
    return step


def _num_steps(setting: Setting) -> int:
    """On-policy steps under the setting's budget."""
    if setting.budget != "matched_compute":
        return setting.path_length
    teachers = [setting.world.models[name] for name in setting.teachers]
    return matched_steps(
        setting.path_length, len(setting.spec.teachers), _parameters(setting.world.student, "student"),
        [_parameters(ref, f"teachers.{name}") for name, ref in zip(setting.teachers, teachers, strict=True)],
    )  # fmt: skip


def matched_steps(path_length: int, num_branches: int, student: int, teachers: list[int]) -> int:
    """⌈6 P K T S / (8 P + 2 Σ P_k)⌉, from T × S, K (MoT's branches, whoever teaches here), and the parameters that a token
    passes through."""
    return -(-6 * student * num_branches * path_length // (8 * student + 2 * sum(teachers)))


def _parameters(model: ModelRef, where: str) -> int:
    """What a token passes through, by the model's config."""
    return architecture_of(model.locator, model.revision, where, ask_hub=True).active
