"""A synthetic `Results`, shaped like a real run but with invented numbers: a test fixture, no measurement.

Rounds are scored on dev, chosen students on test, as the spec says; the accuracies follow made-up curves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from mot_core.evaluation.power import Power
from mot_core.evaluation.statistics import holm, paired_comparison
from mot_core.results import TABLE_COLUMNS, Results

LEVELS = {
    "base": 0.22, "mtd": 0.40, "merge_once": 0.33, "shuffled": 0.36, "ensemble": 0.41, "mot": 0.44,
}  # fmt: skip
TEACHER_LEVELS = (0.39, 0.36, 0.41, 0.28)


@dataclass(frozen=True)
class Shape:
    """How large the synthetic run is."""

    teachers: tuple[str, ...] = ("r1", "qwq", "qwen3-32b", "qwen3-235b")
    seeds: tuple[int, ...] = (0, 1)
    budgets: tuple[str, ...] = ("matched_path", "matched_compute")
    benchmarks: tuple[tuple[str, str], ...] = (
        ("arithmetic", "home"),
        ("clocks", "home"),
        ("letters", "panel"),
    )
    rounds: int = 5
    num_dev_problems: int = 20
    num_test_problems: int = 30
    num_train_problems: int = 60
    k: int = 4
    steps_per_round: int = 6

    @property
    def methods(self) -> tuple[str, ...]:
        stds = tuple(f"std/{teacher}" for teacher in self.teachers)
        return ("base", *stds, "mtd", "merge_once", "shuffled", "ensemble", "mot")


LARGE = Shape(num_dev_problems=120, num_test_problems=200, num_train_problems=400, k=4, steps_per_round=50)


def build_results(shape: Shape | None = None) -> Results:
    """A run with every table filled."""
    shape = shape or Shape()
    rng = np.random.default_rng(7)
    problem_scores = _problem_scores(shape, rng)
    rationales = _rationales(shape, rng)
    tables = {
        "scores": _scores(shape, problem_scores, rng),
        "problem_scores": problem_scores,
        "comparisons": _comparisons(shape, problem_scores),
        "coverage": _coverage(rationales),
        "rationales": rationales,
        "corpus_ledger": [
            ("problems drawn", 0, 400),
            ("r1 has a correct rationale", 26, 374),
            ("limit of 200", 174, 200),
        ],
        "rejections": [
            *(
                (teacher, name, 10 + n)
                for n, name in enumerate(("complete", "correct", "choice"))
                for teacher in shape.teachers
            ),
            ("", "matched", 26),
            ("", "limit", 174),
        ],
        "teachers": [
            (teacher, 240, 0 if n else 240, 0, 0, 9000, 20_000 + n, None, 180, 40, 10, 10, 0, None)
            for n, teacher in enumerate(shape.teachers)
        ],
        "cost": _cost(shape, rng),
        "training": _training(shape, rng),
        "branches": _branch_counts(shape),
        "merge_drift": _both_budgets(shape, _merge_drift(shape, rng)),
        "merge_agreement": _both_budgets(shape, _merge_agreement(shape, rng)),
        "merge_cosine": _both_budgets(shape, _merge_cosine(shape)),
        "merge_rank": _both_budgets(shape, _merge_rank(shape)),
        "merge_barrier": _both_budgets(shape, _merge_barrier(shape)),
        "answers": _answers(shape),
        "steps": _steps(shape),
    }
    frames = {
        name: rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows, columns=list(TABLE_COLUMNS[name]))
        for name, rows in tables.items()
    }
    return Results(
        run_id="synthetic-0001",
        spec={
            "name": "synthetic", "description": "Invented numbers for tests of the report.",
            "student": {"name": "pico", "model": "lab:pico"}, "rounds": shape.rounds,
            "teachers": [{"name": teacher, "model": f"lab:{teacher}"} for teacher in shape.teachers],
            "training_seeds": list(shape.seeds), "budgets": list(shape.budgets),
        },
        summary={"best_single_teacher": {"dev": f"std/{shape.teachers[0]}"}},
        provenance={
            "versions": {"python": "3.11", "torch": "2.13.0", "mot": "0.1.0"},
            "host": {"cpu": "2 cores", "memory_gib": 24}, "spec_identity": "a" * 16,
        },
        **frames,
    )  # fmt: skip


def empty_results() -> Results:
    """A run that recorded nothing: every table has its columns and no row."""
    frames = {name: pd.DataFrame(columns=list(columns)) for name, columns in TABLE_COLUMNS.items()}
    return Results(run_id="empty", spec={}, summary={}, provenance={}, **frames)


def without(results: Results, *names: str) -> Results:
    """The run with some tables emptied."""
    return replace(results, **{name: getattr(results, name).iloc[:0] for name in names})


def _level(shape: Shape, method: str, budget: str, round_index: int) -> float:
    final = TEACHER_LEVELS[shape.teachers.index(method[4:]) % 4] if method.startswith("std/") else LEVELS[method]
    if round_index == 0:
        return LEVELS["base"]
    progress = 1 - np.exp(-round_index / 1.6)
    dip = -0.05 * np.exp(-round_index / 0.8) if method == "mot" else 0.0
    bonus = (
        0.015
        if (budget == "matched_compute" and method in ("mtd", "ensemble"))
        or (budget == "matched_compute" and method.startswith("std/"))
        else 0.0
    )
    return float(LEVELS["base"] + (final - LEVELS["base"]) * progress + dip + bonus)


def _problem_scores(shape: Shape, rng: np.random.Generator) -> pd.DataFrame:
    parts = []
    for budget in shape.budgets:
        for benchmark, role in shape.benchmarks:
            for split, size in (("dev", shape.num_dev_problems), ("test", shape.num_test_problems)):
                hardness = np.random.default_rng(len(benchmark) + size).normal(0, 1.6, size)
                for method in shape.methods:
                    for round_index in _rounds_scored(shape, method, split, role):
                        level = _level(shape, method, budget, round_index)
                        level = (
                            level
                            if role == "home"
                            else LEVELS["base"]
                            + 0.14
                            - 0.4 * (level - LEVELS["base"]) * (0.4 if method == "mot" else 1)
                        )
                        chance = 1 / (1 + np.exp(-(np.log(level / (1 - level)) * 1.6 - hardness)))
                        for seed in shape.seeds:
                            # Base and the methods that merge are the same students under both budgets.
                            same = method in ("base", "mot", "shuffled", "merge_once")
                            draw = (
                                np.random.default_rng(
                                    [hash_text(method) % 9973, size, round_index, seed * (method != "base")]
                                )
                                if same
                                else rng
                            )
                            shift = 0.0 if method == "base" else draw.normal(0, 0.015)
                            correct = draw.binomial(shape.k, np.clip(chance + shift, 0, 1))
                            parts.append(
                                pd.DataFrame(
                                    {
                                        "budget": budget,
                                        "method": method,
                                        "seed": seed,
                                        "round": round_index,
                                        "is_final": round_index in (0, shape.rounds),
                                        "benchmark": benchmark,
                                        "split": split,
                                        "problem_id": [f"{benchmark}-{split}-{i:04d}" for i in range(size)],
                                        "num_correct": correct,
                                        "num_samples": shape.k,
                                        "majority_correct": correct > shape.k / 2,
                                    }
                                )
                            )
    return pd.concat(parts, ignore_index=True)[list(TABLE_COLUMNS["problem_scores"])]


def _rounds_scored(shape: Shape, method: str, split: str, role: str) -> list[int]:
    if method == "base":
        return [0]
    if split == "test" or method in ("ensemble", "merge_once"):
        return [shape.rounds]
    return list(range(1, shape.rounds + 1)) if role == "home" else []


def _scores(shape: Shape, problem_scores: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    roles = dict(shape.benchmarks)
    keys = ["budget", "method", "seed", "round", "is_final", "benchmark", "split"]
    rows = []
    for key, group in problem_scores.groupby(keys, sort=False):
        budget, method, seed, round_index, is_final, benchmark, split = key
        share = group["num_correct"] / group["num_samples"]
        rows.append(
            {
                "budget": budget,
                "method": method,
                "teacher": method[4:] if method.startswith("std/") else None,
                "seed": seed,
                "round": round_index,
                "is_final": is_final,
                "benchmark": benchmark,
                "split": split,
                "role": roles[benchmark],
                "k": shape.k,
                "num_problems": len(group),
                "avg_at_k": share.mean(),
                "pass_at_k": (share > 0).mean(),
                "maj_at_k": group["majority_correct"].mean(),
                "mean_completion_tokens": 60 + 20 * rng.random(),
                "truncated_share": 0.02,
                "unparseable_share": 0.01,
                "failed_share": 0.0,
                "path_steps": round_index * shape.steps_per_round,
                "identity": f"{abs(hash_text(str(key))):016x}",
            }
        )
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS["scores"]))


def hash_text(text: str) -> int:
    """A stable stand-in for an identity."""
    value = 7
    for character in text:
        value = (value * 1_000_003 + ord(character)) % (1 << 61)
    return value


def _comparisons(shape: Shape, problem_scores: pd.DataFrame) -> pd.DataFrame:
    best = f"std/{shape.teachers[0]}"
    final = problem_scores[problem_scores["is_final"] & (problem_scores["split"] == "test")]
    share = final.assign(share=final["num_correct"] / final["num_samples"])
    rows: list[dict[str, Any]] = []
    for (budget, benchmark), group in share.groupby(["budget", "benchmark"], sort=False):
        table = group.groupby(["problem_id", "method"])["share"].mean().unstack()
        for method in shape.methods:
            if method != best:
                found = paired_comparison(table[method], table[best])
                rows.append({"budget": budget, "a": method, "b": best, "benchmark": benchmark, **vars(found)})
    frame = pd.DataFrame(rows)
    powers = [Power(row.delta, row.num_problems, shape.k, row.sd, 0.5) for row in frame.itertuples()]
    return frame.assign(
        p_value_holm=holm(frame["p_value"]), num_seeds=len(shape.seeds), num_samples=shape.k, sampling_share=0.5,
        detectable=[power.detectable for power in powers],
        problems_needed=[power.problems_needed(0.03) for power in powers],
    )[list(TABLE_COLUMNS["comparisons"])]  # fmt: skip


def _rationales(shape: Shape, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    hardness = rng.normal(0, 2.2, shape.num_train_problems)
    for index, teacher in enumerate(shape.teachers):
        strength = 2.2 - 0.8 * index
        for problem in range(shape.num_train_problems):
            for sample in range(4):
                right = rng.random() < 1 / (1 + np.exp(hardness[problem] - strength))
                verdict = "correct" if right else rng.choice(["incorrect", "incorrect", "truncated", "unparseable"])
                tokens = int(np.exp(rng.normal(4.2 + 0.35 * index, 0.45)) + (80 if verdict == "truncated" else 0))
                family = "arithmetic" if problem % 2 else "clocks"
                selected = right and sample == 0 and hardness[problem] < 0.4
                rows.append((teacher, f"{family}-{problem:05d}", family, tokens, str(verdict), selected))
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS["rationales"]))


def _coverage(rationales: pd.DataFrame) -> pd.DataFrame:
    marked = rationales.assign(right=rationales["verdict"] == "correct")
    grouped = marked.groupby(["teacher", "family", "problem_id"], sort=False)
    return grouped.agg(
        num_samples=("right", "size"), num_correct=("right", "sum"), selected=("selected", "any")
    ).reset_index()


def _cost(shape: Shape, rng: np.random.Generator) -> list[tuple[Any, ...]]:
    rows = []
    for budget in shape.budgets:
        for method in shape.methods:
            one = method.startswith("std/")
            branches = 1 if one or method == "mtd" else 0 if method == "base" else len(shape.teachers)
            larger = len(shape.teachers) if budget == "matched_compute" and branches == 1 else 1
            steps = shape.rounds * shape.steps_per_round * branches * larger
            students = len(shape.teachers) if method == "ensemble" else 1
            tokens = 0 if method == "base" else 21_500 if one else 86_000
            for seed in shape.seeds:
                per_problem = students * (62 + 8 * rng.random())
                rows.append(
                    (
                        budget,
                        method,
                        seed,
                        tokens,
                        steps * 2900,
                        steps * 2900 * 6 * 8e5,
                        steps,
                        steps // max(1, branches),
                        per_problem,
                        students,
                    )
                )
    return rows


def _branches(shape: Shape, method: str) -> list[str]:
    if method in ("base", "ensemble"):
        return []
    if method.startswith("std/"):
        return [method[4:]]
    if method == "mtd":
        return ["union"]
    return [f"part-{i}" for i in range(len(shape.teachers))] if method == "shuffled" else list(shape.teachers)


def _training(shape: Shape, rng: np.random.Generator) -> list[tuple[Any, ...]]:
    rows = []
    for budget in shape.budgets:
        for method in shape.methods:
            for offset, branch in enumerate(_branches(shape, method)):
                for seed in shape.seeds:
                    for step in range(1, shape.rounds * shape.steps_per_round + 1):
                        round_index, in_round = (
                            (step - 1) // shape.steps_per_round + 1,
                            (step - 1) % shape.steps_per_round + 1,
                        )
                        loss = 0.35 + 0.06 * offset + 1.4 * np.exp(-step / (0.3 * shape.rounds * shape.steps_per_round))
                        loss += rng.normal(0, 0.03) + (0.12 / in_round if method == "mot" and round_index > 1 else 0.0)
                        looked = method == "mot" and in_round % 2 == 0
                        held_out = loss + 0.1 + 0.02 * round_index if looked else None
                        rows.append((budget, method, seed, round_index, branch, in_round, loss, held_out, 1.0, 2900))
    return rows


def _branch_counts(shape: Shape) -> list[tuple[Any, ...]]:
    """MoT stops its first teacher's branches early; the second teacher's corpus lost examples."""
    rows = []
    for budget in shape.budgets:
        for method in shape.methods:
            for place, branch in enumerate(_branches(shape, method)):
                for seed in shape.seeds:
                    for round_index in range(1, shape.rounds + 1):
                        stops, planned = method == "mot", shape.steps_per_round
                        taken = planned - 2 if stops and place == 0 else planned
                        dropped = 3 if branch == shape.teachers[1 % len(shape.teachers)] else 0
                        identity = f"{hash_text(f'{budget} {method} {branch} {seed} {round_index}'):016x}"
                        rows.append(
                            (budget, method, seed, round_index, branch, identity, 57 - dropped, dropped, 0,
                             6 if stops else None, planned, taken, taken - 1 if stops else None,
                             0.6 if stops else None, 800_000, 800_000, 0, 2900 * taken, 1500 * taken, 4000.0 + place,
                             None)
                        )  # fmt: skip
    return rows


def _merge_cosine(shape: Shape) -> list[tuple[Any, ...]]:
    return [
        (budget, "mot", seed, round_index, a, b, 0.3 - 0.02 * round_index)
        for budget in shape.budgets[:1]
        for seed in shape.seeds
        for round_index in range(1, shape.rounds + 1)
        for a, b in combinations(shape.teachers, 2)
    ]


def _merge_rank(shape: Shape) -> list[tuple[Any, ...]]:
    return [
        (budget, "mot", seed, round_index, branch, f"layer {layer}", kind, f"model.layers.{layer}.{kind}.weight",
         20.0 + 3 * offset + layer - 0.5 * round_index + 10 * (branch == "merged"), 64)
        for budget in shape.budgets[:1]
        for seed in shape.seeds
        for round_index in range(1, shape.rounds + 1)
        for offset, branch in enumerate([*shape.teachers, "merged"])
        for layer, kind in ((0, "attention"), (1, "mlp"), (3, "attention"), (5, "mlp"))
    ]  # fmt: skip


def _merge_barrier(shape: Shape) -> list[tuple[Any, ...]]:
    rows = []
    for budget in shape.budgets[:1]:
        for seed in shape.seeds:
            for round_index in range(1, shape.rounds + 1):
                level = {"start": 1.2 / round_index, "merged": 0.55 / round_index}
                level |= {name: (0.5 + 0.04 * place) / round_index for place, name in enumerate(shape.teachers)}
                lines = [*(("start", name) for name in shape.teachers), *((name, "merged") for name in shape.teachers)]
                for start, end in [*lines, ("start", "merged")]:
                    barrier = 0.12 / round_index if end == "merged" and start != "start" else 0.0
                    for place in range(5):
                        share = place / 4
                        loss = (1 - share) * level[start] + share * level[end] + 4 * barrier * share * (1 - share)
                        rows.append((budget, "mot", seed, round_index, start, end, share, loss, barrier))
    return rows


def _merge_drift(shape: Shape, rng: np.random.Generator) -> list[tuple[Any, ...]]:
    rows = []
    for budget in shape.budgets[:1]:
        for seed in shape.seeds:
            for round_index in range(1, shape.rounds + 1):
                for offset, branch in enumerate([*shape.teachers, "merged"]):
                    for depth, layer in enumerate(["outside layers", *(f"layer {i}" for i in range(6))]):
                        for kind in ("attention", "mlp") if depth else ("embedding",):
                            relative = (
                                (0.05 + 0.006 * offset)
                                * (1 + 0.1 * depth)
                                / round_index**0.5
                                * (0.55 if branch == "merged" else 1)
                            )
                            relative *= 1 + 0.05 * rng.random()
                            rows.append(
                                (
                                    budget,
                                    "mot",
                                    seed,
                                    round_index,
                                    branch,
                                    layer,
                                    kind,
                                    40 * relative,
                                    relative,
                                )
                            )
    return rows


def _merge_agreement(shape: Shape, rng: np.random.Generator) -> list[tuple[Any, ...]]:
    rows = []
    for budget in shape.budgets[:1]:
        for method, level in (("merge_once", 0.25), ("shuffled", 0.62), ("mot", 0.31)):
            for seed in shape.seeds:
                for round_index in [shape.rounds] if method == "merge_once" else range(1, shape.rounds + 1):
                    cosine = level * 0.9 ** (round_index - 1) + 0.02 * rng.random()
                    rows.append(
                        (
                            budget,
                            method,
                            seed,
                            round_index,
                            cosine,
                            cosine - 0.06,
                            0.2 + 0.3 * cosine,
                            0.25 + 0.75 * cosine,
                        )
                    )
    return rows


def _both_budgets(shape: Shape, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(budget, *row[1:]) for budget in shape.budgets for row in rows]


def _answers(shape: Shape) -> list[tuple[Any, ...]]:
    rows = []
    for problem in range(3):
        for method, branch in (
            ("base", None),
            ("std/" + shape.teachers[0], None),
            ("mot", shape.teachers[0]),
            ("mot", "merged"),
        ):
            text = f"Tens, then ones.\n17 + {problem} is {17 + problem}.\nThe answer is {17 + problem}."
            rows.append(
                (
                    shape.budgets[0],
                    method,
                    0,
                    shape.rounds,
                    branch,
                    "arithmetic",
                    f"arithmetic-{problem}",
                    f"What is 17 + {problem}?",
                    str(17 + problem),
                    text,
                    "correct",
                )
            )
    return rows


def _steps(shape: Shape) -> list[tuple[Any, ...]]:
    kinds = ["generate", "grade", "select", "train_branch", "merge", "evaluate", "analyse"]
    return [
        (
            f"{index:016x}",
            kinds[index % 7],
            f"step {index}",
            "reused" if index % 3 == 0 else "run",
            2.5 + index % 5,
            None,
            None,
            None,
            None,
        )
        for index in range(70)
    ]
