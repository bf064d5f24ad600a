"""Files of answers: graded whole and in order, or refused before anything is graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mot_core.errors import GradingError
from mot_core.grading.files import check_rows, grade_file


def row(
    identity: Any, answer_type: str = "integer", gold: str = "4", completion: str = "\\boxed{4}", **more: Any
) -> dict[str, Any]:
    return {"id": identity, "answer_type": answer_type, "gold": gold, "completion": completion, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows))
    return path


def test_rows_keep_their_order_and_their_own_fields(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        [
            row("b", source="kept"), row("a", "math", "\\frac12", "\\boxed{0.5}"), "", row(3, "choice", "A", "\\boxed{B}"),
            row("cut", completion="\\boxed{4}", finish_reason="length"), row("bare", completion="4"),
            row("sum", "family", family="sums"), row("own", "tests.grading.graders:same", "é", "\\boxed{é}"),
            row("bad gold", gold="x"), row("half", "text", completion="\\boxed{\ud800}"),
        ],
    )  # fmt: skip
    told: list[tuple[float, float, str]] = []
    counts = grade_file(source, tmp_path / "out.jsonl", num_workers=1, progress=lambda *event: told.append(event))
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(r["id"], r["verdict"], r["extracted"]) for r in out] == [
        ("b", "correct", "4"), ("a", "correct", "0.5"), (3, "incorrect", "B"), ("cut", "truncated", None),
        ("bare", "unparseable", None), ("sum", "correct", "4"), ("own", "correct", "é"), ("bad gold", "grader_failed", "4"),
        ("half", "incorrect", "\ud800"),
    ]  # fmt: skip
    assert list(out[0]) == [
        "id",
        "answer_type",
        "gold",
        "completion",
        "source",
        "verdict",
        "extracted",
        "seconds",
        "detail",
    ]
    assert out[0]["source"] == "kept" and out[7]["detail"].startswith(
        "UngradableGold: the reference answer 'x' is no integer"
    )
    assert counts == {"correct": 4, "incorrect": 2, "truncated": 1, "unparseable": 1, "grader_failed": 1}
    assert told[-1] == (9, 9, "answers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a JSON list; expected an object"),
        (
            {"id": "b", "gold": "4"},
            "line 2: answer_type, completion missing; expected the keys id, answer_type, gold, completion",
        ),
        (row("b", gold=4), "line 2: gold is a int; expected text"),  # type: ignore[arg-type]
        (row(None), "line 2: id is a NoneType; expected text"),
        (row("b", finish_reason=1), "line 2: finish_reason is a int; expected text, or leave it out"),
        (
            row("b", "maths"),
            "line 2: answer_type 'maths' is not known; expected math, integer, choice, exact, text, family",
        ),
        (row("b", "no.such:grader"), "line 2: answer_type: cannot find the module of 'no.such:grader'"),
        (
            row("b", "tests.grading.graders:none"),
            "line 2: answer_type: module 'tests.grading.graders' has no top-level 'none'",
        ),
        (row("a"), "line 2: id 'a' occurs already in line 1; ids must differ"),
    ],
)
def test_a_bad_row_is_refused_before_anything_is_graded(tmp_path: Path, bad: Any, message: str) -> None:
    source = write(tmp_path / "in.jsonl", [row("a"), bad])
    with pytest.raises(GradingError) as caught:
        grade_file(source, tmp_path / "out.jsonl", num_workers=1)
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_file_is_not_written_over_itself_and_an_error_leaves_no_trace(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a")])
    with pytest.raises(GradingError, match="is both input and output"):
        grade_file(source, source, num_workers=1)

    def fail(*event: Any) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        grade_file(source, tmp_path / "out.jsonl", num_workers=1, progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert check_rows(source) == 1
    assert grade_file(write(tmp_path / "none.jsonl", []), tmp_path / "out.jsonl", num_workers=1) == {}
    assert (tmp_path / "out.jsonl").read_text() == ""
