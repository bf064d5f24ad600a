"""From published steps to the tables of a run (`mot_core.results`), without torch and without recomputing.

The entry points are `load_results(run)` for a notebook and `collect(store, run_dir)` for the flow.
Longer than most: every table's rows are made in one place, which reads each step once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mot_core.artifacts import Manifest, Store
from mot_core.comparison import comparison_rows
from mot_core.errors import StoreError
from mot_core.evaluation.ensemble import ensemble_rows, voters_of
from mot_core.evaluation.harness import harness_scores
from mot_core.evaluation.metrics import problem_scores, standard_error_over_problems, summarize
from mot_core.files import read_jsonl
from mot_core.grading.verdicts import Verdict
from mot_core.results import TABLE_COLUMNS, Results
from mot_core.runs import find_run_dir, read_index, store_of, teachers_of

Rows = list[dict[str, Any]]
ANSWERED_PROBLEMS = 4
_ASKED = ("num_requests", "num_asked", "num_failed", "num_absent")


def load_results(run: str | Path, store: str | Path = "store") -> Results:
    """The tables of a run, by its directory or by its id in a store, as pandas DataFrames.

    Raises:
        StoreError: no such run, or steps of it that are not published (yet, or any more).
    """
    path = Path(run)
    run_dir = path if (path / "index.json").is_file() else find_run_dir(Store(store), str(run))
    summary_path = run_dir / "summary.json"
    summary = json.loads(summary_path.read_text()) if summary_path.is_file() else {}
    return collect(Store(store_of(run_dir)), run_dir, summary)


def collect(store: Store, run_dir: Path, summary: dict[str, Any], *, compare: bool = True) -> Results:
    """Every table of one run. `summary` is carried along; comparisons are computed here, if they are wanted."""
    import pandas as pd

    index = read_index(run_dir)
    reader = _Reader(store, index)
    rows = reader.read(compare)
    frames = {name: pd.DataFrame(rows[name], columns=list(columns)) for name, columns in TABLE_COLUMNS.items()}
    for name in ("scores", "problem_scores"):
        # Whole rounds stay ints where others are none: as floats they would be other keys, and other text in CSV.
        if any(row["round"] % 1 for row in rows[name]):
            frames[name]["round"] = pd.Series([row["round"] for row in rows[name]], dtype=object)
    return Results(run_id=run_dir.name, spec=index["spec"], summary=summary, provenance=index["provenance"], **frames)


@dataclass
class _Reader:
    """Reads each published step of one run once, and appends to the tables."""

    store: Store
    index: dict[str, Any]
    tables: dict[str, Rows] = field(default_factory=lambda: {name: [] for name in TABLE_COLUMNS})
    manifests: dict[str, Manifest] = field(default_factory=dict)
    graded: dict[str, Rows] = field(default_factory=dict)

    def read(self, compare: bool) -> dict[str, Rows]:
        self.tables["steps"] = [
            {name: step.get(name) for name in TABLE_COLUMNS["steps"]} for step in self.index["steps"]
        ]
        self.corpora()
        self.teachers()
        for student in self.index["students"]:
            self.student(student)
        for voters in voters_of(self.index):
            self.vote(voters)
        if not compare:
            return self.tables
        self.tables["comparisons"] = comparison_rows(
            self.tables["problem_scores"], best_single_teachers(self.tables["scores"]),
            self.index["spec"]["evaluation"]["ci_resamples"],
        )  # fmt: skip
        return self.tables

    def manifest(self, identity: str) -> Manifest:
        if identity not in self.manifests:
            found = self.store.manifest(identity)
            if found is None:
                raise StoreError(f"step {identity} is not published in {self.store.root}; run the experiment again")
            self.manifests[identity] = found
        return self.manifests[identity]

    def path(self, identity: str, name: str) -> Path:
        return self.store.object_dir(identity) / name

    # -- teachers --------------------------------------------------------------------------------------

    def corpora(self) -> None:
        nodes = self.index["nodes"]
        document = json.loads(self.path(nodes["corpora"], "ledger.json").read_text())
        self.tables["corpus_ledger"], self.tables["rejections"] = document["ledger"], document["rejections"]
        rejected = {(row["teacher"], row["key"]) for row in read_jsonl(self.path(nodes["corpora"], "rejections.jsonl"))}
        for teacher, identity in nodes["verdicts"].items():
            selected = set(document["selected_by_teacher"][teacher])
            by_problem: dict[str, Rows] = {}
            for row in read_jsonl(self.path(identity, "verdicts.jsonl")):
                by_problem.setdefault(row["problem_id"], []).append(row)
                self.tables["rationales"].append(
                    {
                        "teacher": teacher, "problem_id": row["problem_id"], "family": row["family"],
                        "completion_tokens": row["num_tokens"], "verdict": row["verdict"],
                        "selected": (teacher, row["key"]) not in rejected,
                    }
                )  # fmt: skip
            for problem_id, rows in by_problem.items():
                self.tables["coverage"].append(
                    {
                        "teacher": teacher, "family": rows[0]["family"], "problem_id": problem_id,
                        "num_samples": len(rows), "num_correct": sum(row["verdict"] == "correct" for row in rows),
                        "selected": problem_id in selected,
                    }
                )  # fmt: skip

    def teachers(self) -> None:
        """What each teacher was asked and how its answers were judged."""
        nodes, specs = self.index["nodes"], {t["name"]: t for t in self.index["spec"]["teachers"]}
        for teacher, identity in nodes["verdicts"].items():
            verdicts = self.manifest(identity)
            asked = self.manifest(dict(verdicts.parents)["completions"]).counts
            judged = nodes["judgements"].get(teacher)
            self.tables["teachers"].append(
                {
                    "teacher": teacher, **{name: asked[name] for name in _ASKED},
                    "prompt_tokens": asked["prompt_tokens"], "completion_tokens": asked["num_tokens"],
                    "cost": _cost(specs[teacher]["endpoint"], asked),
                    **{verdict.value: verdicts.counts.get(verdict.value, 0) for verdict in Verdict},
                    "judge_disagreement": self.manifest(judged).counts["disagreement_rate"] if judged else None,
                }
            )  # fmt: skip

    # -- students --------------------------------------------------------------------------------------

    def student(self, student: dict[str, Any]) -> None:
        place = {name: student[name] for name in ("budget", "method", "seed", "round")}
        for evaluation in student["evaluations"]:
            counts = self.manifest(evaluation["identity"]).counts
            scores = problem_scores(self.graded_rows(evaluation["identity"]), counts["k"])
            self.score(student, evaluation, counts, scores, evaluation["identity"])
            self.problem_rows(student, evaluation, scores)
        for asked in student.get("harness", ()):
            self.harness(student, asked)
        if not student["is_final"]:
            return
        for branch in student["branches"]:
            self.branch({**place, "round": branch["round"], "branch": branch["name"]}, branch["identity"])
        for merge in student["merges"]:
            self.merge({**place, "round": merge["round"]}, merge["identity"])
        self.cost(student)
        self.answers(student)

    def branch(self, where: dict[str, Any], identity: str) -> None:
        """A branch's steps, and what its manifest counts."""
        for entry in read_jsonl(self.path(identity, "training.jsonl")):
            row = {**where, **entry}
            self.tables["training"].append({name: row.get(name) for name in TABLE_COLUMNS["training"]})
        manifest = self.manifest(identity)
        row = {
            **where, **manifest.counts, "identity": identity, "num_planned_steps": manifest.spec["num_steps"],
            "num_carried_moments": sum(role.startswith("optimizer/") for role, _ in manifest.parents),
        }  # fmt: skip
        self.tables["branches"].append({name: row.get(name) for name in TABLE_COLUMNS["branches"]})

    def merge(self, where: dict[str, Any], identity: str) -> None:
        """A merge's diagnostics: those that were measured."""
        found = json.loads(self.path(identity, "diagnostics.json").read_text())
        self.tables["merge_drift"] += [{**where, **row} for row in found["drift"]]
        self.tables["merge_agreement"].append({**where, **found["agreement"]})
        for row in found.get("pairwise_cosine", ()):
            # A merge's order is that of its branches' identities, another one each round.
            a, b = sorted((row["a"], row["b"]))
            self.tables["merge_cosine"].append({**where, "a": a, "b": b, "cosine": row["cosine"]})
        self.tables["merge_rank"] += [{**where, **row} for row in found.get("effective_rank", ())]
        for line in found.get("barrier", ()):
            ends = {name: line[name] for name in ("from", "to", "barrier")}
            last = len(line["losses"]) - 1
            self.tables["merge_barrier"] += [
                {**where, **ends, "share": place / last, "loss": loss} for place, loss in enumerate(line["losses"])
            ]

    def graded_rows(self, identity: str) -> Rows:
        if identity not in self.graded:
            self.graded[identity] = read_jsonl(self.path(identity, "graded.jsonl"))
        return self.graded[identity]

    def score(
        self, student: dict[str, Any], evaluation: dict[str, Any], counts: dict[str, Any], scores: Rows, identity: str
    ) -> None:
        error = standard_error_over_problems(scores)
        source = {**student, **evaluation, **counts, "se_problems": error, "identity": identity}
        self.tables["scores"].append({name: source.get(name) for name in TABLE_COLUMNS["scores"]})

    def problem_rows(self, student: dict[str, Any], evaluation: dict[str, Any], scores: Rows) -> None:
        place = {name: student[name] for name in ("budget", "method", "seed", "round", "is_final")}
        # `outcomes` is for the comparisons; the table has no such column.
        kept = ("problem_id", "num_correct", "num_samples", "majority_correct", "outcomes")
        for row in scores:
            self.tables["problem_scores"].append(
                {
                    **place, "benchmark": evaluation["benchmark"], "split": evaluation["split"],
                    **{name: row[name] for name in kept},
                }
            )  # fmt: skip

    def harness(self, student: dict[str, Any], asked: dict[str, Any]) -> None:
        """What lm-evaluation-harness measured: its own figures, and a row a document that is right or wrong."""
        self.manifest(asked["identity"])
        directory = self.store.object_dir(asked["identity"])
        for score, documents in harness_scores(directory, asked["name"], asked["metric"]):
            source = {**student, **asked, **score}
            self.tables["scores"].append({name: source.get(name) for name in TABLE_COLUMNS["scores"]})
            self.tables["problem_scores"] += [
                {name: {**source, **row}.get(name) for name in (*TABLE_COLUMNS["problem_scores"], "outcomes")}
                for row in documents
            ]

    def cost(self, student: dict[str, Any]) -> None:
        tokens = self.manifest(self.index["nodes"]["corpora"]).counts["tokens"]
        made = [self.manifest(branch["identity"]) for branch in student["branches"]]
        branches = [manifest.counts for manifest in made]
        on_corpora = any(manifest.kind == "branch" for manifest in made)
        teachers = teachers_of(self.index["spec"], student) if on_corpora else []
        tests = [e for e in student["evaluations"] if e["split"] == "test" and e["role"] == "home"]
        lengths = [self.manifest(e["identity"]).counts["mean_completion_tokens"] for e in tests]
        self.tables["cost"].append(
            {
                "budget": student["budget"], "method": student["method"], "seed": student["seed"],
                "teacher_tokens": sum(tokens[teacher] for teacher in teachers)
                + sum(counts.get("teacher_tokens", 0) for counts in branches),
                "training_tokens": sum(counts["input_tokens"] for counts in branches),
                # 6 FLOPs a token and parameter that it passes through, forward and backward (Kaplan et al. 2020, arXiv
                # 2001.08361). On-policy steps say their own: sampling and the teachers' reading belong to them.
                "training_flops": sum(
                    counts.get("flops", 6 * counts.get("num_active_parameters", counts["num_parameters"]) * counts["input_tokens"])
                    for counts in branches
                ),
                "branch_steps": sum(counts["num_steps"] for counts in branches),
                "path_steps": student["path_steps"],
                "inference_tokens_per_problem": sum(lengths) / len(lengths) if lengths else None,
                "num_students_at_inference": 1,
            }
        )  # fmt: skip

    def answers(self, student: dict[str, Any]) -> None:
        """What a final student said on the first problems of each home benchmark, with the first seed."""
        if student["seed"] != self.index["spec"]["training_seeds"][0]:
            return
        for evaluation in student["evaluations"]:
            if evaluation["split"] != "test" or evaluation["role"] != "home":
                continue
            problems = read_jsonl(self.path(evaluation["problems"], "problems.jsonl"))[:ANSWERED_PROBLEMS]
            texts = self.texts(evaluation["identity"])
            graded = {(r["problem_id"], r["sample_index"]): r for r in self.graded_rows(evaluation["identity"])}
            for problem in problems:
                row = graded[problem["problem_id"], 0]
                self.tables["answers"].append(
                    {
                        **{name: student[name] for name in ("budget", "method", "seed", "round")},
                        "branch": student["teacher"] or "", "benchmark": evaluation["benchmark"],
                        "problem_id": problem["problem_id"], "question": problem["question"],
                        "gold": problem["answer"], "text": texts[row["key"]], "verdict": row["verdict"],
                    }
                )  # fmt: skip

    def texts(self, evaluation: str) -> dict[str, str]:
        return {row["key"]: row["text"] for row in read_jsonl(self.path(evaluation, "completions.jsonl"))}

    # -- the vote --------------------------------------------------------------------------------------

    def vote(self, members: list[dict[str, Any]]) -> None:
        """Votes over the final STD students of one budget and seed, by split and benchmark."""
        voter = {**members[0], "method": "ensemble", "teacher": None}
        lengths = []
        for position, evaluation in enumerate(members[0]["evaluations"]):
            identities = [member["evaluations"][position]["identity"] for member in members]
            counts = self.manifest(identities[0]).counts
            votes = ensemble_rows([self.graded_rows(identity) for identity in identities])
            scores = problem_scores(votes, counts["k"])
            metrics = summarize(votes, scores, counts["k"])
            self.score(voter, evaluation, metrics, scores, "+".join(identities))
            self.problem_rows(voter, evaluation, scores)
            if evaluation["split"] == "test" and evaluation["role"] == "home":
                lengths.append(metrics["mean_completion_tokens"])
        parts = [row for row in self.tables["cost"] if row["method"] in {m["method"] for m in members}]
        parts = [row for row in parts if (row["budget"], row["seed"]) == (voter["budget"], voter["seed"])]
        summed = ("teacher_tokens", "training_tokens", "training_flops", "branch_steps")
        self.tables["cost"].append(
            {
                **parts[0], "method": "ensemble", **{name: sum(part[name] for part in parts) for name in summed},
                "inference_tokens_per_problem": sum(lengths) / len(lengths) if lengths else None,
                "num_students_at_inference": len(members),
            }
        )  # fmt: skip


def _cost(endpoint: dict[str, Any] | None, asked: dict[str, Any]) -> float | None:
    """What a teacher's requests cost by the spec's prices, whoever paid for them and when."""
    prices = [endpoint[f"price_per_million_{side}_tokens"] for side in ("prompt", "completion")] if endpoint else [None]
    if None in prices:
        return None
    return float((prices[0] * asked["prompt_tokens"] + prices[1] * asked["num_tokens"]) / 1e6)


def best_single_teachers(scores: Rows) -> dict[str, dict[str, str]]:
    """By budget, the STD method that is best on the home benchmarks, mean over seeds: on dev (the choice that
    comparisons use) and on test (an oracle, printed beside it). Ties go to the first in spec order."""
    chosen: dict[str, dict[str, str]] = {}
    for split, name in (("dev", "dev"), ("test", "test_oracle")):
        sums: dict[tuple[str, str], list[float]] = {}
        for row in scores:
            if row["split"] == split and row["is_final"] and row["role"] == "home" and row["method"].startswith("std/"):
                sums.setdefault((row["budget"], row["method"]), []).append(row["avg_at_k"])
        for budget in dict.fromkeys(budget for budget, _ in sums):
            means = {method: sum(v) / len(v) for (b, method), v in sums.items() if b == budget}
            chosen.setdefault(budget, {})[name] = max(means, key=lambda method: means[method])
    return chosen


__all__ = ["best_single_teachers", "collect", "load_results"]
