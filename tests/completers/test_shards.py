"""Shards: several jobs answer parts of one step's requests; the step is the same, and nothing is asked twice."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from mot_core.completers.journal import SHARDS, journal_dir, locked_shard, whole_lines
from mot_core.completers.stage import journal_scope
from mot_core.errors import CompletionError
from mot_core.runner import ModelCache, run_shard
from mot_core.steps import RemoteStep, Step, can_be_sharded
from tests.completers.test_stage import SAMPLING, Desk
from tests.contexts import SETTINGS


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def answer(desk: Desk, shard: tuple[int, int], **wanted: Any) -> None:
    step = RemoteStep.from_json(desk.wanted(**wanted).to_json())
    run_shard(step, shard, desk.store, SETTINGS, lambda event: None, ModelCache())


def scope_of(desk: Desk, completer: str = "Counting") -> dict[str, Any]:
    return journal_scope({"model": "m"}, SAMPLING, f"tests.completers.test_stage:{completer}")


def shards_dir(desk: Desk, completer: str = "Counting") -> Path:
    return journal_dir(desk.store, scope_of(desk, completer)) / SHARDS


@pytest.mark.parametrize("completer", ["Counting", "Streaming"])
@pytest.mark.parametrize("count", [2, 3, 20])
def test_the_step_is_the_same_whatever_the_number_of_shards(tmp_path: Path, completer: str, count: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = Desk(tmp_path / "whole"), Desk(tmp_path / "parts")
    wanted = {"num_problems": 10, "samples": 2, "completer": completer}
    expected = whole.ask(**wanted)
    for index in range(count):
        answer(parts, (index, count), **wanted)
    published = parts.ask(**wanted)
    files = [desk.store.manifest(expected.identity) for desk in (whole, parts)]
    assert files[0] is not None and files[1] is not None
    assert files[0].files == files[1].files
    assert published.counts == expected.counts
    # Batches are those of one job, each asked once; without batches, each request is.
    assert sorted(parts.asked()) == sorted(whole.asked())
    assert list(shards_dir(parts, completer).iterdir()) == []


def test_what_a_failing_shard_was_answered_is_kept_and_not_asked_again(desk: Desk) -> None:
    desk.behave(calls=1)
    with pytest.raises(CompletionError, match="enough"):
        answer(desk, (0, 2), num_problems=16)
    (first,) = desk.asked()
    desk.behave()
    answer(desk, (0, 2), num_problems=16)
    answer(desk, (1, 2), num_problems=16)
    answer(desk, (1, 2), num_problems=16)
    later = desk.asked()
    assert [len(call) for call in later] == [4, 4, 4]
    assert not set(first) & {key for call in later for key in call}
    assert desk.ask(num_problems=16).counts["num_asked"] == 16
    answer(desk, (0, 2), num_problems=16)
    assert desk.asked() == []


def test_a_kill_between_taking_up_and_removing_doubles_no_row(desk: Desk, tmp_path: Path) -> None:
    answer(desk, (0, 1))
    shutil.copytree(shards_dir(desk), tmp_path / "before")
    desk.ask()
    shutil.copytree(tmp_path / "before", shards_dir(desk), dirs_exist_ok=True)
    desk.ask(num_problems=11)
    keys = [row["key"] for row in whole_lines(shards_dir(desk).parent / "rows.jsonl")]
    assert len(keys) == len(set(keys)) == 11


def test_the_step_waits_for_a_shard_that_still_answers(desk: Desk) -> None:
    answer(desk, (0, 2))
    with locked_shard(desk.store, scope_of(desk), (0, 2)) as (journal, answered):
        assert len(journal.places) == 6 and answered == set()
        thread = threading.Thread(target=desk.ask)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(30)
    assert not thread.is_alive()
    asked = [key for call in desk.asked() for key in call]
    assert len(asked) == len(set(asked)) == 10


def test_endpoints_and_files_are_not_sharded() -> None:
    spec = {"completer": "transformers"}
    assert can_be_sharded(Step("completions", spec))
    assert not can_be_sharded(Step("completions", {"completer": "openai"}))
    assert not can_be_sharded(Step("completions", {"completer": "corpus"}))
    assert not can_be_sharded(Step("evaluation", spec))
