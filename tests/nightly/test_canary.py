"""The canary's verdict on made-up records: equal, changed and where, elsewhere; what changed between."""

from __future__ import annotations

import copy
from typing import Any

from mot_core.nightly.canary import judged
from tests.nightly.made_up import means


def record(**changes: Any) -> dict[str, Any]:
    steps = [
        {
            "label": "generate ann",
            "kind": "completions",
            "version": 1,
            "files": {"rows": "h1"},
            "counts": {"num_tokens": 40},
        },
        {"label": "branch ann", "kind": "branch", "version": 2, "files": {"weights": "h2", "log": "h3"}, "counts": {}},
    ]
    return {
        "spec_identity": "s", "steps": steps, "weights": {"mot, seed 1": "w1"},
        "means": [means("mot", [1.0] * 20 + [0.0] * 20)], "commit": "c1", "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        "system": "Linux 6.1", "host_kind": {"processor": "x", "threads_per_worker": 1}, **changes,
    }  # fmt: skip


def with_file(name: str, digest: str, **changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(record(**changes))
    made["steps"][1]["files"][name] = digest
    return made


def test_the_first_of_its_kind_has_nothing_to_compare_with() -> None:
    assert judged(record(), [], 100)["verdict"] == "first"
    elsewhere = [
        ("0001", record(host_kind={"processor": "y", "threads_per_worker": 1})),
        ("0002", record(spec_identity="t")),
    ]
    assert judged(record(), elsewhere, 100)["verdict"] == "first"


def test_equal_files_are_fine_whatever_else_changed() -> None:
    before = record(commit="c0", versions={"torch": "2.12.0"}, verdict={"since": "0003"})
    found = judged(record(), [("0005", record(spec_identity="t")), ("0004", before)], 100)
    assert (found["verdict"], found["against"], found["since"]) == ("equal", "0004", "0003")


def test_a_change_is_traced_to_its_first_step_and_to_what_changed_between() -> None:
    tonight = with_file(
        "weights", "other", weights={"mot, seed 1": "w9"}, commit="c2+", versions={"torch": "2.14.0", "numpy": "2.4.6"}
    )
    tonight["steps"][0]["files"]["rows"] = "h9"
    tonight["steps"][0]["counts"]["num_tokens"] = 41
    tonight["steps"][1]["version"] = 3
    found = judged(tonight, [("0004", record())], 100)
    assert found["verdict"] == "changed" and found["against"] == "0004"
    assert found["changed"] == [
        {"label": "generate ann", "kind": "completions", "what": "rows; num_tokens 40 → 41"},
        {"label": "branch ann", "kind": "branch", "what": "algorithm version 2 → 3; weights"},
    ]
    assert found["why"] == "2 of 2 steps gave other files, first generate ann (rows; num_tokens 40 → 41)"
    assert found["between"] == ["commit c1 → c2+", "torch 2.13.0 → 2.14.0"]
    assert found["weights"] == ["mot, seed 1"]
    assert found["num_moved"] == 0 and found["beyond"] == [] and found["largest"] is None


def test_scores_that_moved_are_told_beyond_the_interval_or_not() -> None:
    worse = judged(with_file("log", "x", means=[means("mot", [0.0] * 40)]), [("0001", record())], 500)
    assert worse["num_moved"] == 1 and [row["method"] for row in worse["beyond"]] == ["mot"]
    assert worse["beyond"][0]["delta"] == -0.5 and worse["beyond"][0]["high"] < 0
    shuffled = [1.0] * 19 + [0.0] * 20 + [1.0]
    noise = judged(with_file("log", "x", means=[means("mot", shuffled)]), [("0001", record())], 500)
    assert noise["num_moved"] == 1 and noise["beyond"] == [] and noise["largest"]["delta"] == 0.0


def test_steps_that_came_and_went_are_changes() -> None:
    tonight = copy.deepcopy(record(commit="c1+"))
    tonight["steps"][1]["label"] = "branch bob"
    found = judged(tonight, [("0001", record(commit="c1+"))], 100)
    assert [(one["label"], one["what"]) for one in found["changed"]] == [
        ("branch bob", "was not there"),
        ("branch ann", "is gone"),
    ]
    assert found["between"] == ["the program is no clean checkout: its code may have changed"]
