"""What the tracker is told about one run: runs to log as plain records, without MLflow.

Everything is read from the run's index, its tables and the manifests of its steps. Invariant: only numbers,
identities, hashes and short sanitised text become tags or params; nothing comes from the environment.
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
from tasks.tracking_records import Input, PlannedRun, StudentModel, flatten, metric_name, short_text

Row = dict[str, str]
SCORES = ("avg_at_k", "pass_at_k", "maj_at_k")
TEST_MEASURES = ("mean_completion_tokens", "truncated_share", "unparseable_share", "failed_share")
AGREEMENT = ("mean_cosine", "min_cosine", "sign_agreement", "energy_kept")
TEACHER_MEASURES = ("num_requests", "num_failed", "completion_tokens", "cost", "correct", "judge_disagreement")
CURVES = ("loss", "grad_norm", "tokens")
# What differs between two invocations with equal results: states and seconds of steps.
INVOCATION_TABLES = ("steps.csv",)


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
        self.notes = {
            name: short_text(value)
            for name, value in (
                ("mot.run_id", run_dir.name), ("mot.git_commit", provenance.get("commit")),
                ("mot.flow_run_id", provenance.get("flow_run_id")),
            )
            if value
        }  # fmt: skip
        self.tables = {name: self.table(name) for name in ("scores", "teachers", "cost", "training", "merge_agreement")}
        self.corpora: set[Input] = set()

    def table(self, name: str) -> list[Row]:
        path = self.run_dir / "tables" / f"{name}.csv"
        if not path.is_file():
            raise StoreError(f"run {self.run_dir.name} has no tables/{name}.csv: no report was written; run it again")
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
        # The run's own name stays out: two spellings of one spec have one identity.
        return PlannedRun(
            "experiment", None, f"{self.spec['name']} {self.spec_identity[:8]}",
            self.tags("experiment", self.spec_identity), self.notes, dict(flatten(self.spec)),
            tuple(self.headlines()), inputs, None,
            tuple((self.run_dir / name, place) for name, place in places if (self.run_dir / name).exists()),
            {path.name: sha256_of(path) for path in tables if path.name not in INVOCATION_TABLES},
            self.started, self.started,
        )  # fmt: skip

    def headlines(self) -> Iterator[tuple[str, float, int]]:
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
            (*_unique(point for row in scores for point in _score_points(row)), *costs),
            tuple(sorted(trained | set(self.benchmarks(budget, seed, student)))), None, (), {},
            min((m.started for m in branches if m), default=self.started),
            max((m.ended for m in branches if m), default=self.started),
        )  # fmt: skip

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
        agreement = [
            (metric_name("merge", name), value, merge["round"])
            for row in self.rows("merge_agreement", **where)
            for name in AGREEMENT
            if (value := _number(row[name])) is not None
        ]
        scores = _unique(point for row in self.rows("scores", **where) for point in _score_points(row))
        return PlannedRun(
            self.key(**where), self.key(**place), f"round {merge['round']} merge",
            self.tags("round", merge["identity"], **where), self.notes,
            dict(flatten(manifest.spec)) if manifest else {}, (*agreement, *scores), (),
            self.student_model(where, merge["identity"], manifest), (), {},
            manifest.started if manifest else self.started, manifest.ended if manifest else self.started,
        )  # fmt: skip

    def branch(self, place: dict[str, Any], branch: dict[str, Any]) -> PlannedRun:
        manifest = self.manifest(branch["identity"])
        name = branch["name"]
        teacher = name if name in {teacher["name"] for teacher in self.spec["teachers"]} else None
        where = {**place, "round": branch["round"], "branch": name}
        curves = [
            (curve, value, int(row["step"]))
            for row in self.rows("training", **where)
            for curve in CURVES
            if (value := _number(row[curve])) is not None
        ]
        return PlannedRun(
            self.key(**where), self.key(**place), f"round {branch['round']} {name}" if branch["round"] else name,
            self.tags("branch", branch["identity"], teacher=teacher, **where), self.notes,
            dict(flatten(manifest.spec)) if manifest else {}, tuple(curves), tuple(sorted(self.corpora_of(manifest))),
            None, (), {}, manifest.started if manifest else self.started, manifest.ended if manifest else self.started,
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
        weights = {
            n: facts["sha256"]
            for n, facts in sorted(manifest.files.items())
            if "/" not in n and n.endswith(".safetensors")
        }
        parents = {role.removeprefix("branch/"): one for role, one in manifest.parents if role.startswith("branch/")}
        sha256 = next(iter(weights.values())) if len(weights) == 1 else fingerprint([list(w) for w in weights.items()])
        name = f"{where['method']} {where['budget']} seed {where['seed']} round {where['round']}"
        tags = {
            "mot.parents": canonical_json(parents), "mot.start": self.start_of(manifest), "mot.sha256": sha256,
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


def _score_points(row: Row) -> Iterator[tuple[str, float, int]]:
    """A score row's metrics by round: `dev/sums/avg_at_1`, and for the final student `test/sums/avg_at_4`."""
    k = int(float(row["k"]))
    names = {score: score.replace("_k", f"_{k}") for score in (SCORES if k > 1 else SCORES[:1])}
    if row["split"] == "test":
        names |= {measure: measure for measure in TEST_MEASURES}
    for column, name in names.items():
        value = _number(row[column])
        if value is not None:
            yield metric_name(row["split"], row["benchmark"], name), value, int(row["round"])


def _unique(points: Iterable[tuple[str, float, int]]) -> list[tuple[str, float, int]]:
    """One point a name and step: a student that ends at a round's boundary is listed once."""
    return list({(name, step): (name, value, step) for name, value, step in points}.values())


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
