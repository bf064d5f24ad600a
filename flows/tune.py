"""The fair sweep: every method tries the same learning rates on the dev split, with one training seed of its own.

The record's identity is the hash of every evaluation that it read and of the rule that chose, so a preset that
carries it can be checked without running anything. Test problems are never touched.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from flows.experiment import Outline
from flows.run import Announce, RunOptions, check_devices, looking_up, outline_of, pool_of, prepared
from mot_core.artifacts import Store
from mot_core.files import write_atomically
from mot_core.identity import canonical_json, fingerprint
from mot_core.prepare import prepare
from mot_core.retention import kept_places
from mot_core.runs import write_steps
from mot_core.spec import TRAINED_METHODS, Experiment
from mot_core.steps import Step
from mot_core.world import World, resolve
from tasks.invocation import Invocation, Watcher

RULES = {
    "mean": "highest mean of the home benchmarks' dev avg@k, over a method's students; ties go to the lower rate",
    "best": "highest mean of the home benchmarks' dev avg@k, of a method's best student; ties go to the lower rate",
}


@dataclass(frozen=True)
class Sweep:
    """One method × rate grid: the rates, what each scored on dev, and the choice."""

    identity: str
    scores: dict[str, dict[float, float]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)


def sweep_specs(spec: Experiment) -> dict[float, Experiment]:
    """The experiment at each learning rate: tuning seed, matched path, last round, dev only."""
    methods = tuple(
        m for m in spec.methods
        if (m.builtin in TRAINED_METHODS or m.import_path is not None) and m.learning_rate_scale is None
    )  # fmt: skip
    specs = {}
    for rate in sorted(spec.tuning.learning_rates):
        specs[rate] = spec.model_copy(
            update={
                "methods": tuple(method.model_copy(update={"learning_rate": rate}) for method in methods),
                "training_seeds": (spec.tuning.training_seed,),
                "budgets": ("matched_path",),
                "evaluation": spec.evaluation.model_copy(
                    update={
                        "path": spec.evaluation.path.model_copy(
                            update={"rounds": "last", "methods": None, "every_steps": None}
                        )
                    }
                ),
            }
        )
    return specs


def sweep_outline(spec: Experiment, world: World) -> tuple[dict[float, Outline], list[Step], str]:
    """The sweep's nodes by rate, all its steps, and its identity; nothing is run."""
    outlines, steps = {}, {}
    for rate, variant in sweep_specs(spec).items():
        outlines[rate], own = outline_of(variant, world, touch_test=False)
        steps.update({step.identity: step for step in own})
    evaluated = sorted(identity for identity, step in steps.items() if step.kind == "evaluation")
    return outlines, list(steps.values()), fingerprint({"rule": RULES[spec.tuning.score], "evaluations": evaluated})


def tune(
    spec: Experiment, options: RunOptions | None = None, watch: Watcher = lambda step, event: None,
    announce: Announce = lambda line, num_steps: None,
) -> Sweep:  # fmt: skip
    """Run the sweep (reusing what is published) and choose; the record lies in `STORE/tuning/<identity>.json`."""
    options = options or RunOptions()
    store = Store(options.store)
    with contextlib.closing(pool_of(store, options)) as pool, looking_up(store, spec.name) as looked_up:
        check_devices(spec, pool.devices)
        world, drawn = prepare(spec, resolve(spec), store.open(), publish=True)
        outlines, steps, identity = sweep_outline(spec, world)
        kept = kept_places(spec.keep, {step.identity for step in steps}, (), ())  # its result is scores, and no student
        run_dir = store.root / "runs" / f"tune-{spec.name}-{identity[:8]}"
        invocation = Invocation(run_dir.name, store, pool, world, watch, shards=options.shards)
        with prepared(invocation, steps, drawn, options.halt, announce, kept):
            looked_up()
            write_steps(run_dir, steps, world.locators, spec.keep, finished=False)
            from flows.orchestrate import in_flow_run, run_sweep

            in_flow_run(run_sweep, invocation, spec.model_dump(mode="json"))
            write_steps(run_dir, steps, world.locators, spec.keep, finished=True)
    scores = read_scores(spec, outlines, store)
    chosen = {method: max(sorted(rates), key=lambda rate: rates[rate]) for method, rates in scores.items()}
    sweep = Sweep(identity, scores, chosen)
    (store.root / "tuning").mkdir(exist_ok=True)
    write_atomically(
        store.root / "tuning" / f"{identity}.json", canonical_json(record_of(sweep, spec.tuning.score)) + "\n"
    )
    return sweep


def record_of(sweep: Sweep, score: str) -> dict[str, Any]:
    """The sweep as JSON, with the rule of `tuning.score`."""
    scores = {method: {str(rate): score for rate, score in rates.items()} for method, rates in sweep.scores.items()}
    return {"identity": sweep.identity, "rule": RULES[score], "scores": scores, "chosen": sweep.chosen}


def read_scores(spec: Experiment, outlines: dict[float, Outline], store: Store) -> dict[str, dict[float, float]]:
    """Method → rate → mean dev score on the home benchmarks, over the method's students or of its best one (STD has one a
    teacher), as `tuning.score` says."""
    home = {benchmark.name for benchmark in spec.evaluation.benchmarks if benchmark.role == "home"}
    scores: dict[str, dict[float, float]] = {}
    for rate, outline in outlines.items():
        by_method: dict[str, dict[str, list[float]]] = {}
        for student in outline.students:
            for name, split, step in student.evaluations:
                manifest = store.manifest(step.identity)
                if name in home and split == "dev" and manifest is not None:
                    of = by_method.setdefault(student.method, {})
                    of.setdefault(student.path.label, []).append(manifest.counts["avg_at_k"])
        for method, by_student in by_method.items():
            means = [sum(values) / len(values) for values in by_student.values()]
            best = spec.tuning.score == "best"
            scores.setdefault(method, {})[rate] = max(means) if best else sum(means) / len(means)
    return scores


def preset_lines(spec: Experiment, sweep: Sweep) -> str:
    """The YAML lines by which a preset carries the sweep's choices and identity."""
    lines = ["methods:"]
    for method in spec.methods:
        rate = sweep.chosen.get(method.name)
        fields = [f"name: {method.name}"]
        fields += [f"variant_of: {method.variant_of}"] if method.variant_of is not None else []
        fields += [f"teachers: [{', '.join(method.teachers)}]"] if method.teachers is not None else []
        fields += [f"learning_rate: {rate!r}"] if rate is not None else []
        scale = method.learning_rate_scale
        fields += [f"learning_rate_scale: {scale!r}"] if scale is not None else []
        fields += [f"training: {json.dumps(method.training)}"] if method.training else []
        fields += [f'import_path: "{method.import_path}"'] if method.import_path is not None else []
        lines.append(f"  - {{{', '.join(fields)}}}")
    lines += ["tuning:", f"  learning_rates: {sorted(spec.tuning.learning_rates)}",
              f"  training_seed: {spec.tuning.training_seed}", f"  score: {spec.tuning.score}",
              f"  record: {sweep.identity}"]  # fmt: skip
    return "\n".join(lines)


def edge_note(spec: Experiment, sweep: Sweep) -> str:
    """Which methods were chosen at an end of the grid, where a better rate may lie beyond; empty if none was."""
    rates = sorted(spec.tuning.learning_rates)
    at_edge = [f"{method} at {rate:g}" for method, rate in sweep.chosen.items() if rate in (rates[0], rates[-1])]
    if not at_edge or len(rates) < 2:
        return ""
    return f"chosen at an end of the grid: {', '.join(at_edge)}; widen tuning.learning_rates, or take it that no rate suits"


def tuning_note(spec: Experiment, world: World) -> str:
    """Whether the spec's learning rates come from the sweep that this very spec would run."""
    if spec.tuning.record is None:
        return "learning rates: not from a sweep of this spec (mot tune makes one)"
    _, _, identity = sweep_outline(spec, world)
    if identity == spec.tuning.record:
        return f"learning rates: from sweep {identity} of this spec"
    return (
        f"learning rates: from sweep {spec.tuning.record}, but this spec's own would be {identity}: run mot tune again"
    )
