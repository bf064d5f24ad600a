"""Matched corpora: for every teacher the same problems, on which every teacher was right, one rationale each.

The paper's setting (method, D_k): branches differ in how the teachers reason, not in what they were asked.
"""

from __future__ import annotations

import json
import logging
import random
from typing import Any

from mot_core.artifacts import read_jsonl
from mot_core.corpus.tables import corpus_row, write_corpus
from mot_core.errors import CorpusError
from mot_core.grading.stage import VERDICTS
from mot_core.grading.verdicts import Verdict
from mot_core.identity import derive_seed
from mot_core.runner import StepContext

log = logging.getLogger("mot.corpus")


def build_matched_corpora(context: StepContext) -> dict[str, Any]:
    """Runner of `corpora`: `<teacher>.parquet` for each teacher, and `ledger.json` of what was dropped.

    Raises:
        CorpusError: no problem is left, with how many fell at which filter.
    """
    spec = context.spec
    problems = {row["problem_id"]: row for row in read_jsonl(context.parent_dir("problems") / "problems.jsonl")}
    verdicts = {
        role.removeprefix("verdicts/"): read_jsonl(path / VERDICTS) for role, path in context.parents("verdicts/")
    }
    correct = {
        teacher: _by_problem([row for row in rows if row["verdict"] == Verdict.CORRECT])
        for teacher, rows in verdicts.items()
    }
    ledger = [{"filter": "problems drawn", "num_dropped": 0, "num_left": len(problems)}]
    left = set(problems)
    for teacher in verdicts:
        kept = left & set(correct[teacher])
        ledger.append(
            {
                "filter": f"{teacher} has a correct rationale",
                "num_dropped": len(left) - len(kept),
                "num_left": len(kept),
            }
        )
        left = kept
    if not left:
        told = "; ".join(f"{entry['filter']}: −{entry['num_dropped']}, {entry['num_left']} left" for entry in ledger)
        raise CorpusError(
            f"the matched corpora are empty: no problem was answered correctly by every teacher ({told}); draw more "
            "problems or samples, or leave out the teacher at which they fall"
        )
    selected = _select(sorted(left), spec["num_rationales"], spec["selection_seed"])
    ledger.append(
        {
            "filter": f"limit of {spec['num_rationales']}",
            "num_dropped": len(left) - len(selected),
            "num_left": len(selected),
        }
    )
    if len(selected) < spec["num_rationales"]:
        log.warning("%d matched problems, fewer than the %d asked for", len(selected), spec["num_rationales"])
    tokens = {}
    for teacher in verdicts:
        rows = [
            corpus_row(_choose(correct[teacher][problem_id], spec), problems[problem_id]["question"], teacher)
            for problem_id in selected
        ]
        tokens[teacher] = sum(row["completion_tokens"] for row in rows)
        write_corpus(context.work_dir / f"{teacher}.parquet", rows)
    (context.work_dir / "ledger.json").write_text(json.dumps({"ledger": ledger, "selected": selected}, indent=1))
    return {"num_rationales": len(selected), "tokens": tokens}


def _by_problem(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["problem_id"], []).append(row)
    return grouped


def _select(problem_ids: list[str], limit: int, seed: int) -> list[str]:
    order = random.Random(derive_seed("select", seed))
    return sorted(order.sample(problem_ids, limit)) if limit < len(problem_ids) else problem_ids


def _choose(rows: list[dict[str, Any]], spec: Any) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: int(row["sample_index"]))
    if spec["choice"] == "shortest":
        return min(rows, key=lambda row: int(row["num_tokens"]))
    if spec["choice"] == "random":
        return random.Random(derive_seed("choose", spec["selection_seed"], rows[0]["key"])).choice(rows)
    return rows[0]
