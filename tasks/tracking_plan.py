"""What the tracker is told about one run: runs to log as plain records, without MLflow.

Everything is read from the run's index, its tables and the manifests of its steps. Invariant: only numbers,
identities, hashes and short sanitised text become tags or params; nothing comes from the environment.
Longer than most: the whole tree that a tracker shows is laid out in one place.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mot_core.artifacts import Manifest, Store
from mot_core.errors import StoreError
from mot_core.files import sha256_of
from mot_core.identity import canonical_json, fingerprint
from mot_core.runs import SUMMARY, read_index
from mot_core.usage import read_usage
from tasks.tracking_records import (
    MACHINE_METRICS,
    Input,
    PlannedRun,
    StudentModel,
    flatten,
    metric_name,
    notes_of,
    short_text,
    weights_sha256,
)  # fmt: skip
from tasks.tracking_usage import speed_samples, system_samples

Row = dict[str, str]
Point = tuple[str, float, int]  # name, value, step
SCORES = ("avg_at_k", "pass_at_k", "maj_at_k")
TEST_MEASURES = ("mean_completion_tokens", "truncated_share", "unparseable_share", "failed_share")
AGREEMENT = ("mean_cosine", "min_cosine", "sign_agreement", "energy_kept")
TEACHER_MEASURES = ("num_requests", "num_failed", "completion_tokens", "cost", "correct", "judge_disagreement")
CURVES = ("loss", "held_out_loss", "grad_norm", "tokens")
BRANCH_MEASURES = (
    "num_examples", "num_dropped_long", "num_cut_long", "num_held_out", "num_planned_steps", "num_steps", "best_step",
    "num_parameters", "num_trained_parameters", "num_carried_moments", "input_tokens", "completion_tokens",
    *MACHINE_METRICS,
)  # fmt: skip
TABLES = (
    "scores", "teachers", "cost", "training", "branches", "merge_drift", "merge_agreement", "merge_cosine", "merge_rank",
    "merge_barrier",
)  # fmt: skip
# What differs between two invocations with equal results: states and seconds of steps, speed and memory of branches.
INVOCATION_TABLES = ("steps.csv", "branches.csv")


def plan_run(store: Store, run_dir: Path) -> list[PlannedRun]:
    """The runs to log for one invocation, parents before children.

    Raises:
        StoreError: the invocation did not get as far as its summary.
    """
    return list(_Planner(store, run_dir).runs())


class _Planner:
    """Plans the runs of one invocation: the experiment, its methods by budget and seed, their rounds and branches."""

    def __init__(self, store: Store, run_dir: Path) -> None:
        self.store, self.run_dir = store, run_dir
        self.index = read_index(run_dir)
        try:
            self.summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text())
        except FileNotFoundError:
            raise StoreError(f"run {run_dir.name} has no {SUMMARY}: it ended early; run the experiment again") from None
        self.spec: dict[str, Any] = self.index["spec"]
        self.spec_identity: str = self.index["spec_identity"]
        provenance = self.index["provenance"]
        self.started = float(provenance.get("started") or 0.0)
        self.notes = notes_of(run_dir.name, provenance)
        if not (run_dir / "tables").is_dir():
            raise StoreError(f"run {run_dir.name} has no tables/: no report was written; run it again")
        self.tables = {name: self.table(name) for name in TABLES}
        self.corpora: set[Input] = set()

    def table(self, name: str) -> list[Row]:
        """A table's rows; none of one that the run's version of this program did not write."""
        path = self.run_dir / "tables" / f"{name}.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def rows(self, table: str, **where: Any) -> list[Row]:
        return [row for row in self.tables[table] if all(row[name] == str(value) for name, value in where.items())]

    def runs(self) -> Iterator[PlannedRun]:
        students = {(s["budget"], s["method"], s["seed"]): s for s in self.index["students"] if s["is_final"]}
        # From the scores, so that the ensemble, which has no student of its own, is among them.
        places = dict.fromkeys((r["budget"], r["method"], int(r["seed"])) for r in self.tables["scores"])
        below = [
            one for place in places for one in (self.method(*place, students.get(place)), *self.path(*place, students))
        ]
        yield self.experiment(tuple(sorted({one for run in below for one in run.inputs})))
        yield from below

    def tags(self, role: str, identity: str, **facts: Any) -> dict[str, str]:
        return {
            "mot.role": role, "mot.spec": self.spec_identity, "mot.identity": identity,
            **{f"mot.{name}": short_text(value) for name, value in facts.items() if value is not None},
        }  # fmt: skip

    # -- the experiment --------------------------------------------------------------------------------

    def experiment(self, inputs: tuple[Input, ...]) -> PlannedRun:
        tables = sorted((self.run_dir / "tables").iterdir())
        places = (("spec.yaml", None), ("report.html", None), ("tables", "tables"), ("figures", "figures"))
        # The run's own name stays out, and what it keeps: two spellings of one spec have one identity.
        params = dict(flatten({name: value for name, value in self.spec.items() if name != "keep"}))
        return PlannedRun(
            "experiment", None, f"{self.spec['name']} {self.spec_identity[:8]}",
            self.tags("experiment", self.spec_identity), self.notes, params,
            tuple(self.headlines()), inputs, None,
            tuple((self.run_dir / name, place) for name, place in places if (self.run_dir / name).exists()),
            {path.name: sha256_of(path) for path in tables if path.name not in INVOCATION_TABLES},
            self.started, self.started + float(self.summary["wall_seconds"]),
        )  # fmt: skip

    def headlines(self) -> Iterator[Point]:
        """Means over seeds on the test split, as in summary.json, and what the teachers were asked."""
        for budget, methods in self.summary["budgets"].items():
            for method, facts in methods.items():
                for benchmark, scores in facts["benchmarks"].items():
                    name = metric_name(budget, method, "test", benchmark, f"avg_at_{scores['k']}")
                    yield name, float(scores["avg_at_k"]), 0
        for row in self.tables["teachers"]:
            for measure in TEACHER_MEASURES:
                if (value := _number(row[measure])) is not None:
                    yield metric_name("teacher", row["teacher"], measure), value, 0

    # -- methods ---------------------------------------------------------------------------------------

    def method(self, budget: str, method: str, seed: int, student: dict[str, Any] | None) -> PlannedRun:
        place = {"budget": budget, "method": method, "seed": seed}
        scores = self.rows("scores", **place)
        several = len(self.spec["budgets"]) > 1
        branches = [self.manifest(branch["identity"]) for branch in (student or {}).get("branches", ())]
        trained = {one for manifest in branches for one in self.corpora_of(manifest)}
        evaluations = [self.manifest(one["identity"]) for one in (student or {}).get("evaluations", ())]
        spans = [(m.started, m.ended) for m in (*branches, *evaluations) if m] or [(self.started, self.started)]
        teacher = student["teacher"] if student else None
        costs = [
            (metric_name("cost", name), value, 0)
            for row in self.rows("cost", **place)
            for name in row
            if name not in place and (value := _number(row[name])) is not None
        ]
        return PlannedRun(
            self.key(**place), "experiment", f"{method} seed {seed}" + (f" ({budget})" if several else ""),
            self.tags(
                "method", student["student"]["identity"] if student else fingerprint([r["identity"] for r in scores]),
                teacher=teacher, rounds=student["round"] if student else None, **place,
            ),
            self.notes, {name: str(value) for name, value in place.items()},
            (*_unique(point for row in scores for point in _score_points(row)), *_path_points(scores), *costs,
             *(self.answers(teacher) if teacher else ())),
            tuple(sorted(trained | set(self.benchmarks(budget, seed, student)))), None, (), {},
            min(began for began, _ in spans), max(ended for _, ended in spans),
        )  # fmt: skip

    def answers(self, teacher: str) -> Iterator[Point]:
        """What a teacher's own answers were, beside what a student of it alone scores: `teacher/correct_share` …"""
        for row in self.rows("teachers", teacher=teacher):
            for name, value, step in _points(row, TEACHER_MEASURES, 0):
                yield metric_name("teacher", name), value, step
            correct, asked = _number(row["correct"]), _number(row["num_requests"])
            if correct is not None and asked:
                yield "teacher/correct_share", correct / asked, 0

    def path(self, budget: str, method: str, seed: int, students: dict[Any, Any]) -> Iterator[PlannedRun]:
        student = students.get((budget, method, seed))
        if student is None:
            return
        place = {"budget": budget, "method": method, "seed": seed}
        for merge in student["merges"]:
            yield self.round(place, merge)
        for branch in student["branches"]:
            yield self.branch(place, branch)

    def round(self, place: dict[str, Any], merge: dict[str, Any]) -> PlannedRun:
        where = {**place, "round": merge["round"]}
        manifest = self.manifest(merge["identity"])
        scores = _unique(point for row in self.rows("scores", **where) for point in _score_points(row))
        return PlannedRun(
            self.key(**where), self.key(**place), f"round {merge['round']} merge",
            self.tags("round", merge["identity"], **where), self.notes,
            dict(flatten(manifest.spec)) if manifest else {}, (*_unique(self.merge_points(where)), *scores), (),
            self.student_model(where, merge["identity"], manifest), (), {},
            manifest.started if manifest else self.started, manifest.ended if manifest else self.started,
            tuple(system_samples(read_usage(self.store.usage_path(merge["identity"])))),
        )  # fmt: skip

    def merge_points(self, where: dict[str, Any]) -> Iterator[Point]:
        """A merge's diagnostics, each at the step that is its round: `merge/drift/mlp/ann`, `merge/max_barrier` …"""
        step = where["round"]
        for row in self.rows("merge_agreement", **where):
            for name, value, _ in _points(row, AGREEMENT, step):
                yield metric_name("merge", name), value, step
        for row in self.rows("merge_cosine", **where):
            yield metric_name("merge", "cosine", f"{row['a']} {row['b']}"), float(row["cosine"]), step
        for group, branch, drift, relative in _drifts(self.rows("merge_drift", **where)):
            yield metric_name("merge", "drift", group, branch), drift, step
            if relative is not None:
                yield metric_name("merge", "relative_drift", group, branch), relative, step
        ranks: dict[tuple[str, str], list[float]] = {}
        for row in self.rows("merge_rank", **where):
            for group in ("all", row["kind"]):
                ranks.setdefault((group, row["branch"]), []).append(float(row["effective_rank"]))
        for (group, branch), found in ranks.items():
            yield metric_name("merge", "effective_rank", group, branch), sum(found) / len(found), step
        barriers: dict[str, float] = {}
        for row in self.rows("merge_barrier", **where):
            barriers[f"{row['from']} to {row['to']}"] = float(row["barrier"])
            if float(row["share"]) in (0.0, 1.0):
                end = row["to"] if float(row["share"]) else row["from"]
                yield metric_name("merge", "loss", end), float(row["loss"]), step
        for line, barrier in barriers.items():
            yield metric_name("merge", "barrier", line), barrier, step
        if barriers:
            yield metric_name("merge", "max_barrier"), max(barriers.values()), step

    def branch(self, place: dict[str, Any], branch: dict[str, Any]) -> PlannedRun:
        manifest = self.manifest(branch["identity"])
        name = branch["name"]
        teacher = name if name in {teacher["name"] for teacher in self.spec["teachers"]} else None
        where = {**place, "round": branch["round"], "branch": name}
        curves = [point for row in self.rows("training", **where) for point in _points(row, CURVES, int(row["step"]))]
        counts = [point for row in self.rows("branches", **where) for point in _points(row, BRANCH_MEASURES, 0)]
        rows = read_usage(self.store.usage_path(branch["identity"]))
        first = int(manifest.spec.get("first_step", 0)) if manifest else 0
        last = max((step for _, _, step in curves), default=first)
        counts = [(name, value, last if name == "tokens_per_second" else step) for name, value, step in counts]
        return PlannedRun(
            self.key(**where), self.key(**place), f"round {branch['round']} {name}" if branch["round"] else name,
            self.tags("branch", branch["identity"], teacher=teacher, **where), self.notes,
            dict(flatten(manifest.spec)) if manifest else {}, (*curves, *counts), tuple(sorted(self.corpora_of(manifest))),
            None, (), {}, manifest.started if manifest else self.started, manifest.ended if manifest else self.started,
            (*speed_samples(rows, first, last), *system_samples(rows)),
        )  # fmt: skip

    # -- parts -----------------------------------------------------------------------------------------

    def key(self, **place: Any) -> str:
        return "/".join(f"{name}={value}" for name, value in place.items())

    def manifest(self, identity: str) -> Manifest | None:
        return self.store.manifest(identity)

    def corpora_of(self, branch: Manifest | None) -> set[Input]:
        identities = [identity for role, identity in branch.parents if role == "corpora"] if branch else []
        names = branch.spec.get("corpora", ()) if branch else ()
        return {Input("training", f"corpus/{name}", identity) for identity in identities for name in names}

    def benchmarks(self, budget: str, seed: int, student: dict[str, Any] | None) -> Iterator[Input]:
        """The problem sets of a student's evaluations; a vote is over the same ones as its voters."""
        voters = [s for s in self.index["students"] if (s["budget"], s["seed"], s["is_final"]) == (budget, seed, True)]
        for evaluation in (student or voters[0])["evaluations"]:
            name = f"benchmark/{evaluation['benchmark']}/{evaluation['split']}"
            yield Input("evaluation", name, evaluation["problems"])

    def student_model(self, where: dict[str, Any], identity: str, manifest: Manifest | None) -> StudentModel | None:
        if manifest is None:
            return None
        parents = {role.removeprefix("branch/"): one for role, one in manifest.parents if role.startswith("branch/")}
        name = f"{where['method']} {where['budget']} seed {where['seed']} round {where['round']}"
        tags = {
            "mot.parents": canonical_json(parents), "mot.start": self.start_of(manifest), "mot.sha256": weights_sha256(manifest.files),
            **self.tags("merged-student", identity, **where),
        }  # fmt: skip
        return StudentModel(re.sub(r"[^\w\- ]", "-", name), tags, self.store.object_dir(identity).as_uri())

    def start_of(self, merge: Manifest) -> str:
        """The identity of the student that the merge's branches started from."""
        for manifest in (merge, *(self.manifest(identity) for _, identity in merge.parents)):
            if manifest is not None:
                parents = [identity for role, identity in manifest.parents if role == "student"]
                if parents or manifest.spec.get("student"):
                    return str((parents or [manifest.spec["student"]])[0])
        return "unknown"


def _score_points(row: Row) -> Iterator[Point]:
    """A score row's metrics by round: `dev/sums/avg_at_1`, and for the final student `test/sums/avg_at_4`. A row inside
    a round has none, since a step is a whole number: see `_path_points`."""
    if not float(row["round"]).is_integer():
        return
    for column, name in score_names(int(float(row["k"])), row["split"]).items():
        value = _number(row[column])
        if value is not None:
            yield metric_name(row["split"], row["benchmark"], name), value, int(row["round"])


def score_names(k: int, split: str) -> dict[str, str]:
    """The columns of a score row that become metrics, and the ends of their names."""
    names = {score: score.replace("_k", f"_{k}") for score in (SCORES if k > 1 else SCORES[:1])}
    return names | {measure: measure for measure in (TEST_MEASURES if split == "test" else ())}


def _path_points(rows: list[Row]) -> Iterator[Point]:
    """Scores on dev by optimizer step along the path, `path/sums/avg_at_1`, where it was followed inside its rounds."""
    if all(float(row["round"]).is_integer() for row in rows):
        return
    for row in rows:
        value = _number(row["avg_at_k"])
        if row["split"] == "dev" and value is not None:
            name = metric_name("path", row["benchmark"], f"avg_at_{int(float(row['k']))}")
            yield name, value, int(float(row["path_steps"]))


def _points(row: Row, names: Iterable[str], step: int) -> Iterator[Point]:
    """A row's numbers under their columns' names; not those that it lacks."""
    for name in names:
        value = _number(row.get(name, ""))
        if value is not None:
            yield name, value, step


def _drifts(rows: list[Row]) -> Iterator[tuple[str, str, float, float | None]]:
    """`(group, branch, norm, norm over the start's)` of all tensors, of each kind, and of each layer."""
    import pandas as pd

    from mot_core.report.figures.merging import drift_totals

    if rows:
        frame = pd.DataFrame(rows).assign(all="all")
        for by in ("all", "kind", "layer"):
            for group, branch, drift, relative in drift_totals(frame, [by, "branch"]).itertuples(index=False):
                yield group, branch, float(drift), None if math.isnan(relative) else float(relative)


def _unique(points: Iterable[Point]) -> list[Point]:
    """One point a name and step: a student that ends at a round's boundary is listed once."""
    return list({(name, step): (name, value, step) for name, value, step in points}.values())


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
