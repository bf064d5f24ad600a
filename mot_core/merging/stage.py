"""The merge stage: θₜ ← merge(θₜ¹ … θₜᴷ; θₜ₋₁) (paper, method, step 2; the paper's rule is the mean).

Branches are summed in the order of their directories, which in a store are their identities, so naming or listing
them otherwise changes nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mot_core.artifacts import MANIFEST
from mot_core.errors import MergeError
from mot_core.merging.apply import Merger, Progress, Share, Treatment, one_thread_a_call
from mot_core.merging.card import CARD, Lineage, card_text
from mot_core.merging.plan import INDEX, BranchFiles, Plan, inspect, make_plan
from mot_core.merging.rules import Rule, rule_named
from mot_core.merging.tensors import FLOATS, Output, ShardWriter
from mot_core.model_files import check_model_files

if TYPE_CHECKING:
    from mot_core.runner import StepContext

DIAGNOSTICS = "diagnostics.json"
STATE_DIR, STATE = "rule_state", "state"
MAX_SHARD_BYTES = 5_000_000_000

ParametersOf = Callable[[str], tuple[Mapping[str, Any], Sequence[Share]]]


@dataclass(frozen=True)
class MergeSettings:
    """How a merge is done beside its rule and weights. `previous` holds the state of a rule that keeps one;
    `parameters_of` gives parameters and shares tensor by tensor, in the order of the branches as they were given."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    previous: Path | None = None
    strict: bool = True
    dtype: str | None = None
    any_tokenizer: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES
    threads: int | None = None
    parameters_of: ParametersOf | None = None
    warn: Callable[[str], None] = lambda line: None


def merge_branches(context: StepContext) -> dict[str, Any]:
    """Runner of `merge`: the next student, `diagnostics.json`, its card, and the rule's state if it keeps one."""
    from mot_core.models import local_copy

    spec = context.spec
    start = inspect("start", local_copy(context.model_dir("student"), context.step.locators.get("student_revision")))
    for role, path in context.parents("branch/"):
        check_model_files(path, role)
    branches = [inspect(role.removeprefix("branch/"), path) for role, path in context.parents("branch/")]
    weights = _weights(context, [branch.name for branch in branches])
    previous = context.parents("previous")
    settings = MergeSettings(
        spec.get("parameters", {}),
        spec.get("seed", 0),
        previous[0][1] if previous else None,
        threads=context.settings.threads,
    )
    diagnostics = merge_models(
        start, branches, weights, spec["rule"], context.work_dir,
        progress=lambda done, total: context.progress(done, total, "tensors"), settings=settings,
    )  # fmt: skip
    counts: dict[str, Any] = {"num_branches": len(branches), "weights": weights, **diagnostics["agreement"]}
    if "barrier" in spec:
        from mot_core.merging.barrier import measure_barrier

        diagnostics["barrier"] = measure_barrier(context, start, branches)
        counts["barrier"] = max(row["barrier"] for row in diagnostics["barrier"])
    identities = {role: identity for role, _, identity in context.step.parent_records}
    lineage = [
        Lineage(branch.name, identities[f"branch/{branch.name}"], weight)
        for branch, weight in zip(branches, weights, strict=True)
    ]
    rule = rule_named(spec["rule"], settings.parameters)
    origin = Lineage("start", identities.get("student", spec.get("student", "start")))
    (context.work_dir / CARD).write_text(
        card_text(spec["rule"], rule.source, rule.model_dump(), origin, lineage, diagnostics["agreement"])
    )
    (context.work_dir / DIAGNOSTICS).write_text(json.dumps(diagnostics, indent=1))
    return counts


def _weights(context: StepContext, names: list[str]) -> list[float]:
    """The spec's weights, or the teachers' shares of right rationales, scaled to sum to one."""
    if context.spec["weights"] != "teacher_accuracy":
        return list(context.spec["weights"])
    from mot_core.files import read_jsonl

    shares = {}
    for role, path in context.parents("quality/"):
        verdicts = [row["verdict"] for row in read_jsonl(path / "verdicts.jsonl")]
        shares[role.removeprefix("quality/")] = verdicts.count("correct") / max(1, len(verdicts))
    total = sum(shares[name] for name in names)
    if total == 0.0:
        raise MergeError(f"weights by teacher_accuracy: no teacher of {names} was ever right; expected one that was")
    return [shares[name] / total for name in names]


def merge_models(
    start: BranchFiles | None, branches: list[BranchFiles], weights: list[float], rule_name: str, out_dir: Path,
    progress: Progress = lambda done, total: None, settings: MergeSettings | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Merge branches of one start into `out_dir`; the diagnostics (of a merge without a start: none).

    Raises:
        MergeError: branches that do not match, weights that do not sum to one, or a tensor that is not finite.
    """
    settings = settings or MergeSettings()
    rule = rule_named(rule_name, settings.parameters)
    check_weights(rule, weights, len(branches), as_given=settings.parameters_of is not None)
    if start is None and rule.needs_start:
        raise MergeError(
            f"merge rule {rule_name!r} works on updates; expected the start that the branches began at, as base"
        )
    order = sorted(
        range(len(branches)), key=lambda place: (str(branches[place].directory.resolve()), weights[place], place)
    )
    plan = make_plan(
        start, [branches[place] for place in order], strict=settings.strict, dtype=settings.dtype,
        any_tokenizer=settings.any_tokenizer,
    )  # fmt: skip
    for line in plan.warnings:
        settings.warn(line)
    treatment_of = _treatments(rule_name, rule, weights, order, settings)
    state = _state(rule_name, rule, plan, settings.previous)
    merger = _apply(rule_name, rule, plan, treatment_of, state, out_dir, progress, settings)
    carry_over(_carrier(plan).directory, out_dir)
    if plan.start is None:
        return {}
    from mot_core.merging.rank import effective_ranks

    with one_thread_a_call():
        ranks = effective_ranks(plan.start, plan.branches, inspect("merged", out_dir), merger.threads)
    return {**merger.diagnostics.summary(), "effective_rank": ranks}


def check_weights(rule: Rule, weights: Sequence[float], num_branches: int, *, as_given: bool) -> None:
    """Refuse weights that a rule cannot take. `as_given`: another tool's recipe, whose weights are what it says they are.

    Raises:
        MergeError: not one a branch, or a sum or sign that the rule does not allow.
    """
    wrong_sum = rule.averages and not as_given and abs(sum(weights) - 1.0) > 1e-6
    negative = not rule.negative_weights and not as_given and min(weights, default=0.0) < 0.0
    if wrong_sum or negative or len(weights) != num_branches or not weights:
        raise MergeError(
            f"{num_branches} branches with weights {list(weights)}: expected one each"
            + (", summing to 1" if rule.averages else "") + ("" if rule.negative_weights else ", none negative")
        )  # fmt: skip


def _treatments(
    rule_name: str, rule: Rule, weights: Sequence[float], order: Sequence[int], settings: MergeSettings
) -> Callable[[str], Treatment]:
    if settings.parameters_of is None:
        same = Treatment(rule, tuple(Share(weights[place], {}) for place in order))
        return lambda key: same
    parameters_of = settings.parameters_of

    def treatment_of(key: str) -> Treatment:
        parameters, shares = parameters_of(key)
        return Treatment(rule_named(rule_name, parameters), tuple(shares[place] for place in order))

    return treatment_of


def _state(rule_name: str, rule: Rule, plan: Plan, previous: Path | None) -> BranchFiles | None:
    """What the rule carried from the previous merge, if there is one."""
    if previous is None or not rule.keeps_state:
        return None
    if (previous / STATE_DIR).is_dir():
        check_model_files(previous / STATE_DIR, "previous")
    state = inspect("previous", previous / STATE_DIR, STATE)
    expected = {output.key: output.shape for output in plan.outputs if output.dtype in FLOATS}
    if state.metadata.get("rule") != rule_name or state.shapes != expected:
        raise MergeError(
            f"the previous merge {previous} carries the state of rule {state.metadata.get('rule')!r} for "
            f"{len(state.shapes)} tensors; expected {rule_name!r} and the {len(expected)} tensors of this model"
        )
    return state


def _apply(
    rule_name: str, rule: Rule, plan: Plan, treatment_of: Callable[[str], Treatment], state: BranchFiles | None,
    out_dir: Path, progress: Progress, settings: MergeSettings,
) -> Merger:  # fmt: skip
    import torch

    threads = 1 if rule.whole_tensors else settings.threads or torch.get_num_threads()
    with ExitStack() as stack:
        writer = stack.enter_context(
            ShardWriter(out_dir, "model", plan.outputs, settings.max_shard_bytes, {"format": "pt"})
        )
        state_writer = None
        if rule.keeps_state:
            merges = int(state.metadata["merges"]) + 1 if state is not None else 1
            # In a folder of its own: engines load every safetensors file that lies beside a model's.
            (out_dir / STATE_DIR).mkdir()
            outputs = [Output(output.key, "F32", output.shape) for output in plan.outputs if output.dtype in FLOATS]
            state_writer = stack.enter_context(
                ShardWriter(
                    out_dir / STATE_DIR, STATE, outputs, settings.max_shard_bytes,
                    {"format": "pt", "rule": rule_name, "merges": str(merges)},
                )
            )  # fmt: skip
        merger = Merger(
            plan, treatment_of, writer, seed=settings.seed, threads=threads, state=state, state_writer=state_writer
        )
        merger.run(progress)
    return merger


def _carrier(plan: Plan) -> BranchFiles:
    """Whose config and tokenizer the merge takes: the first branch's that is a whole model, else the start's."""
    whole = [branch for branch in plan.branches if not branch.is_adapter]
    carrier = whole[0] if whole else plan.start
    assert carrier is not None, "adapters have been refused without a start"
    return carrier


def carry_over(source: Path, target: Path) -> None:
    """Everything of a model that is not weights: config, generation config, tokenizer, template."""
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix in (".json", ".jinja", ".txt", ".model")
            and path.name not in (INDEX, MANIFEST, DIAGNOSTICS, "merge.json")
            and not path.name.startswith("adapter_")
        ):
            shutil.copyfile(path, target / path.name)
