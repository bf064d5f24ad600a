"""The journal: whole groups only, an answer once and for ever, whatever tore the file."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path

import pytest

from mot_core.completers.base import Completion, Request
from mot_core.completers.journal import Journal, whole_lines

SCOPE = {"model": {"model": "m"}, "sampling": {"temperature": 1.0}, "completer": "c"}
ENGINE = {"engine": "test", "version": "1"}
REQUESTS = [Request.of({"test": 1}, f"p{index}", f"question {index}", 0) for index in range(40)]


def answer(index: int, text: str = "answer") -> Completion:
    return Completion.of(REQUESTS[index], f"{text} {index} ∑\n", 3, "stop", prompt=f"<{index}>", prompt_tokens=5)


def opened(directory: Path) -> Journal:
    return Journal(directory, SCOPE)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.append([answer(0), answer(1)], ENGINE)
    journal.append([answer(2)], {**ENGINE, "version": "2"})
    journal.append([], ENGINE)
    journal.close()
    again = opened(tmp_path / "j")
    assert list(again.rows([REQUESTS[i].key for i in (2, 0, 1)])) == [answer(2), answer(0), answer(1)]
    assert again.spent == {"prompt_tokens": 15, "completion_tokens": 9}
    engines = {row["id"]: row["version"] for row in whole_lines(tmp_path / "j" / "engines.jsonl")}
    rows = [json.loads(line) for line in (tmp_path / "j" / "rows.jsonl").read_text().splitlines()]
    assert [(row["left"], engines[row["engine"]]) for row in rows] == [(1, "1"), (0, "1"), (0, "2")]
    assert json.loads((tmp_path / "j" / "scope.json").read_text()) == SCOPE
    again.close()


def test_any_torn_tail_costs_at_most_its_own_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = opened(tmp_path / "j")
    for start in (0, 10, 20):
        journal.append([answer(index) for index in range(start, start + 10)], ENGINE)
    journal.close()
    whole = (tmp_path / "j" / "rows.jsonl").read_bytes()
    ends = [0]  # where each group ends
    for line in whole.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    ends = ends[::10]
    draw = random.Random(1)
    cuts = sorted({*draw.sample(range(len(whole)), 60), 0, 1, len(whole) - 1, *ends})
    for cut in cuts:
        directory = tmp_path / f"cut-{cut}"
        directory.mkdir()
        (directory / "rows.jsonl").write_bytes(whole[:cut])
        with caplog.at_level(logging.ERROR):
            torn = opened(directory)
        kept = sum(cut >= end for end in ends[1:]) * 10
        assert [index for index in range(40) if torn.answered(REQUESTS[index].key)] == list(range(kept)), cut
        # What follows is whole, and a third reader sees both.
        torn.append([answer(35), answer(36)], ENGINE)
        torn.close()
        third = opened(directory)
        assert sorted(third.places) == sorted(REQUESTS[index].key for index in [*range(kept), 35, 36])
        assert third.read(REQUESTS[36].key)["text"] == answer(36).text
        third.close()


def test_a_torn_tail_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = opened(tmp_path / "j")
    journal.append([answer(0), answer(1)], ENGINE)
    journal.close()
    path = tmp_path / "j" / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        opened(tmp_path / "j").close()
    assert "a torn tail of" in caplog.text and "asked again" in caplog.text
    assert path.stat().st_size == 0


def test_garbage_in_the_middle_costs_its_group_only(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    for start in (0, 2, 4):
        journal.append([answer(start), answer(start + 1)], ENGINE)
    journal.close()
    path = tmp_path / "j" / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\x00" * (len(lines[2]) - 1) + b"\n"  # as a machine that lost power may leave it
    path.write_bytes(b"".join(lines))
    again = opened(tmp_path / "j")
    held = [index for index in range(6) if again.answered(REQUESTS[index].key)]
    # The broken group's second row is whole by itself; the row before it is not, and is asked again.
    assert held == [0, 1, 3, 4, 5]
    again.close()


def test_a_failure_is_asked_again_and_never_displaces_an_answer(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.append([Completion.failed(REQUESTS[0], "connection refused")], ENGINE)
    assert not journal.answered(REQUESTS[0].key) and REQUESTS[0].key in journal.places
    journal.append([answer(0)], ENGINE)
    journal.append([Completion.failed(REQUESTS[0], "again")], ENGINE)
    journal.close()
    again = opened(tmp_path / "j")
    assert again.answered(REQUESTS[0].key)
    assert again.read(REQUESTS[0].key)["text"] == answer(0).text
    again.close()


def test_a_full_disk_leaves_no_half_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path / "j")
    journal.append([answer(0)], ENGINE)
    size = journal.path.stat().st_size
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:50]))
    with pytest.raises(OSError, match="only 50 of .* is the disk full"):
        journal.append([answer(1), answer(2)], ENGINE)
    monkeypatch.undo()
    assert journal.path.stat().st_size == size
    journal.append([answer(3)], ENGINE)
    assert journal.read(REQUESTS[3].key)["text"] == answer(3).text
    journal.close()


def test_half_a_surrogate_pair_can_be_stored(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.append([Completion.of(REQUESTS[0], json.loads('"a\\ud800b"'), 1, "stop")], ENGINE)
    assert journal.read(REQUESTS[0].key)["text"] == "a?b"
    journal.close()
