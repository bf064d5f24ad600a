"""Awkward and hostile answers with the verdict each must have, through the pool with its limits; and Math-Verify beside it.

`cases.jsonl` has a row a case: id, answer_type, gold, completion, verdict, why. A long text is a list of `[piece, times]`.
`hostile` cases are not shown to stock Math-Verify, which hangs on some. `stock` marks where its verdict is another.
In a completion PWNED stands for a file that an intrusion would make.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import GradeItem, Verdict
from tests.processes import descendants, wait_until

CASES = Path(__file__).with_name("cases.jsonl")


def spelled_out(text: Any) -> str:
    return text if isinstance(text, str) else "".join(piece * times for piece, times in text)


def cases() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    return [{**row, "gold": spelled_out(row["gold"]), "completion": spelled_out(row["completion"])} for row in rows]


def item_of(case: dict[str, Any]) -> GradeItem:
    return GradeItem(case["answer_type"], "", case["gold"], case["completion"], case.get("finish_reason", "stop"))


@pytest.mark.slow
def test_every_case_has_its_verdict(tmp_path: Path) -> None:
    rows, pwned = cases(), tmp_path / "pwned"
    intrusions = [row for row in rows if "PWNED" in row["completion"]]
    assert intrusions
    for row in intrusions:
        row["completion"] = row["completion"].replace("PWNED", str(pwned))
    assert len(rows) >= 300 and len({row["id"] for row in rows}) == len(rows)
    assert {row["verdict"] for row in rows} == {verdict.value for verdict in Verdict}
    # Twice the usual time: a busy machine must not turn a slow answer into a failed one.
    with GradingPool(num_workers=2, seconds=10.0) as pool:
        graded = pool.grade([item_of(row) for row in rows])
        assert pool._process is not None
        warden = pool._process.pid
        wait_until(lambda: len(descendants(warden)) == 2, 60.0, "killed workers are replaced, and none is lost")
    wrong = [
        (row["id"], row["gold"][:60], row["completion"][-60:], row["verdict"], one.verdict.value, one.detail)
        for row, one in zip(rows, graded, strict=True)
        if one.verdict != row["verdict"] or not one.detail.startswith(row.get("detail", ""))
    ]
    assert wrong == []
    assert all(one.seconds < 40.0 for one in graded)
    assert all((one.detail != "") == (one.verdict is Verdict.GRADER_FAILED) for one in graded)
    assert not pwned.exists()


@pytest.mark.slow
def test_agreement_with_stock_math_verify_is_as_marked() -> None:
    """Stock: `verify(parse(gold in a box), parse(completion))`, all settings but its time limits at their defaults."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    compared = [row for row in cases() if row["answer_type"] == "math" and not row.get("hostile")]
    differing = {}
    for row in compared:
        # None takes a second; the limits are the wall clock's.
        gold, answer = (parse(text, parsing_timeout=60) for text in (f"\\boxed{{{row['gold']}}}", row["completion"]))
        right = verify(gold, answer, timeout_seconds=60)
        if right != (row["verdict"] == Verdict.CORRECT):
            differing[row["id"]] = "correct" if right else "incorrect"
    assert differing == {row["id"]: row["stock"] for row in compared if "stock" in row}
    agreement = 1 - len(differing) / len(compared)
    print(f"agreement with stock Math-Verify: {agreement:.3f} of {len(compared)} cases")
    assert (len(compared), round(agreement, 3)) == (423, 0.775)
