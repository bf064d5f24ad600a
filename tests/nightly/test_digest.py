"""The digest on made-up results of either sign: what is new, what fell, what is left, and its pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mot_core.nightly.digest import Estimate, Remaining, cause_of, digest_of, metrics_of
from mot_core.nightly.nights import Night
from mot_core.nightly.order import Standing, standing_of
from mot_core.nightly.page import headline, markdown, write_digest
from mot_core.nightly.results import Finished, Means, moved
from mot_core.nightly.spec import Cell, Reference
from mot_core.report.text import markdown_text
from tests.nightly.made_up import STEPS, finished, first_night, grid_of, means, nightly

CANARY = {"verdict": "first", "why": "no night before", "against": None}
LOW, HIGH = [means("mot", [0.0] * 30 + [1.0] * 10)], [means("mot", [1.0] * 40)]


def standing(cell: Cell, found: Finished | None) -> Standing:
    return standing_of(cell, found, found.steps if found else STEPS, Reference(), 3)


def digest(night: Night, standings: list[Standing], kept: dict[str, Means], **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"state": "finished", "reason": None, "canary": CANARY, "remaining": [], **changes}
    return digest_of(
        nightly(), night, given["state"], given["reason"], given["canary"], standings, given["remaining"],
        means_of=lambda one: kept.get(one.result), means_before=kept.get,
    )  # fmt: skip


def two_nights(root: Path, before: Means, after: Means, **changes: Any) -> dict[str, Any]:
    """The second night's digest: the cell's result was r1 in the first, and is r2."""
    (cell,) = grid_of(rounds=[1])
    night = first_night(root)
    night.directory.mkdir(parents=True)
    write_digest(night.directory, digest(night, [standing(cell, finished(cell))], {"r1": before}))
    second = Night(root, "0002", 1_100_000.0)
    found = finished(cell, result="r2", **changes)
    return digest(second, [standing(cell, found)], {"r1": before, "r2": after})


def test_what_is_new_is_told_once(tmp_path: Path) -> None:
    (cell,) = grid_of(rounds=[1])
    night = first_night(tmp_path)
    first = digest(night, [standing(cell, finished(cell, ("mtd", 0.2, 0.1, 0.3)))], {"r1": LOW})
    assert first["cells"][0]["is_new"] and first["cells"][0]["cause"] == "first results"
    assert "rounds\\=1" not in markdown(first) and "rounds=1" in markdown(first)
    night.directory.mkdir()
    write_digest(night.directory, first)
    again = digest(Night(tmp_path, "0002", 1.0), [standing(cell, finished(cell, ("mtd", 0.2, 0.1, 0.3)))], {"r1": LOW})
    assert not again["cells"][0]["is_new"] and again["regressions"] == []
    assert dict(metrics_of(again))["cells/new"] == 0.0


def test_a_fall_is_a_regression_and_a_rise_is_none(tmp_path: Path) -> None:
    fell = two_nights(tmp_path / "fell", HIGH, LOW, steps={"a", "c"})
    (row,) = fell["regressions"]
    assert row["delta"] == -0.75 and row["high"] < 0 and row["cause"] == "run again with other code"
    assert row["before"] == 1.0 and row["after"] == 0.25
    text = markdown(fell)
    assert "1 regression" in text and "100.0 → 25.0" in text.replace("\\", "") and "−75.0 [" in text.replace("\\", "")
    rose = two_nights(tmp_path / "rose", LOW, HIGH)
    assert rose["regressions"] == [] and rose["cells"][0]["moved"][0]["delta"] == 0.75
    assert "0 fell and 1 rose" in markdown(rose) and dict(metrics_of(rose))["regressions"] == 0.0
    assert rose["cells"][0]["cause"] == "run again with other results"


def test_noise_is_no_regression(tmp_path: Path) -> None:
    noise = two_nights(
        tmp_path, [means("mot", [1.0, 0.0] * 20)], [means("mot", [0.0, 1.0] * 19 + [0.0, 0.0])], num_seeds=2
    )
    assert noise["regressions"] == [] and noise["cells"][0]["moved"][0]["delta"] == pytest.approx(-0.025)
    assert noise["cells"][0]["cause"] == "training seeds 1 → 1, 2"


def test_moved_pairs_shared_problems_and_skips_what_is_equal() -> None:
    before = [means("mot", [1.0] * 10), means("mtd", [0.5] * 10), means("gone", [0.0])]
    after = [means("mot", [1.0] * 5 + [0.0] * 7), means("mtd", [0.5] * 10), means("fresh", [0.0])]
    (one,) = moved(before, after, 200)
    assert (one.method, one.num_problems, one.delta) == ("mot", 10, -0.5)
    assert moved(before, before, 200) == []


def test_causes() -> None:
    now = {"result": "r2", "seeds": [1, 2], "steps": "s"}
    assert cause_of(None, now) == "first results" == cause_of({"result": None, "seeds": [], "steps": None}, now)
    assert cause_of({"result": "r1", "seeds": [1], "steps": "t"}, now) == "training seeds 1 → 1, 2"


def test_what_did_not_fit_and_why_it_stopped_are_said(tmp_path: Path) -> None:
    cells = grid_of(rounds=[1, 2])
    left = [
        Remaining(standing(cell, None), Estimate(600.0, 5_000), fits)
        for cell, fits in zip(cells, (True, False), strict=True)
    ]
    made = digest(
        first_night(tmp_path), [one.standing for one in left], {}, state="stopped", reason="run x is in progress", remaining=left
    )  # fmt: skip
    assert headline(made).startswith("stopped for: run x is in progress; goes on next night; canary computed")
    assert "1.5 of 480 minutes and 1,234 completion tokens spent" in headline(made)
    assert [(row["cell"], row["fits"], row["seconds"]) for row in made["remaining"]] == [
        ("rounds=1", True, 600.0),
        ("rounds=2", False, 600.0),
    ]
    assert "What did not fit exceeds what the night had left" in markdown(made)
    assert dict(metrics_of(made)) | {"stopped": 1.0, "cells/remaining": 2.0} == dict(metrics_of(made))


def test_a_changed_canary_is_loud(tmp_path: Path) -> None:
    canary = {
        "verdict": "changed", "why": "1 of 9 steps gave other files, first generate ann (rows)", "against": "0001",
        "changed": [{"label": "generate ann", "kind": "completions", "what": "rows"}], "weights": ["mot, seed 1"], "between": [],
        "num_moved": 0, "beyond": [], "largest": None, "repeats": True,
    }  # fmt: skip
    made = digest(first_night(tmp_path), [], {}, canary=canary)
    text = markdown(made).replace("\\", "")
    assert "canary CHANGED" in text and "nothing that is recorded" in text and "the change repeats" in text
    assert dict(metrics_of(made))["canary/changed"] == 1.0 and dict(metrics_of(made))["canary/steps_changed"] == 1.0


def test_nothing_that_a_spec_or_a_message_says_becomes_markup(tmp_path: Path) -> None:
    (cell,) = grid_of(rounds=[1])
    night = first_night(tmp_path)
    night.directory.mkdir()
    evil = "<script>alert(1)</script> | [x](http://y)\n# h"
    night.visits = [
        {"cell": evil, "key": cell.key, "why": "w", "state": "failed", "message": evil, "seconds": 1.0, "tokens": 0,
         "estimated_seconds": 1.0, "estimated_tokens": 0}
    ]  # fmt: skip
    made = digest(
        night, [Standing(cell, "not planned", evil)], {}, canary={"verdict": "failed", "why": evil, "against": None}
    )
    write_digest(night.directory, made)
    text, page = (night.directory / "digest.md").read_text(), (night.directory / "digest.html").read_text()
    assert text.count(markdown_text(evil)) == 4 and not re.search(r"(?<!\\)[<\[]|\n# ", text)
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page
    assert json.loads((night.directory / "digest.json").read_text()) == made
