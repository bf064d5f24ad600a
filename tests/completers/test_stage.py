"""The generation stage: nothing is asked twice, by whatever road it is wanted again."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mot_core.artifacts import Published, Store
from mot_core.completers.base import Accept, Completion, Request, Source, batches_of
from mot_core.completers.journal import journal_dir
from mot_core.completers.stage import journal_scope
from mot_core.errors import CompletionError
from mot_core.files import read_jsonl, write_jsonl
from mot_core.identity import ALGORITHM_VERSIONS
from mot_core.problems import Problem
from mot_core.steps import Step
from tests.contexts import publish, run

SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_completion_tokens": 12}


class Counting:
    """Answers every request with its key, and writes down in `<locator>/asked.jsonl` what it was asked, a line a call.

    `<locator>/behaviour.json` may tell it to fail on questions, or to stop with an error after so many calls.
    """

    batched: ClassVar[bool] = True

    def __init__(self, source: Source) -> None:
        self.source, self.place, self.calls = source, Path(source.locator), 0

    def facts(self) -> dict[str, Any]:
        return {"engine": type(self).__name__}

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        behaviour = self.place / "behaviour.json"
        told = json.loads(behaviour.read_text()) if behaviour.exists() else {}
        if self.calls >= told.get("calls", 1000):
            raise CompletionError("enough")
        self.calls += 1
        with (self.place / "asked.jsonl").open("a") as file:
            file.write(json.dumps([request.key for request in requests]) + "\n")
        accept([
            Completion.failed(request, "told to") if request.question in told.get("fail", ())
            else Completion.of(request, f"answer to {request.key}", 2, "stop") for request in requests
        ])  # fmt: skip


class Streaming(Counting):
    """The same, a row a time."""

    batched: ClassVar[bool] = False

    def complete(self, requests: list[Request], accept: Accept, progress: Callable[[int], None]) -> None:
        for request in requests:
            super().complete([request], accept, progress)


class Desk:
    """One store and one teacher in a directory."""

    def __init__(self, root: Path) -> None:
        self.store, self.place = Store(root / "store").open(), root / "teacher"
        self.place.mkdir()

    def wanted(self, num_problems: int = 10, samples: int = 1, completer: str = "Counting", **spec: Any) -> Step:
        questions = [f"{'long ' * (index % 3)}question {index}" for index in range(num_problems)]
        problems = [Problem.of("f", question, "1").to_json() for question in questions]
        parent = Step("problems", {"num_problems": num_problems})
        publish(self.store, parent, lambda path: write_jsonl(path / "problems.jsonl", problems))
        whole = {
            "teacher": {"model": "m"}, "completer": f"tests.completers.test_stage:{completer}", "sampling": SAMPLING,
            "num_samples": samples, "seed": 1, "batch_size": 4, "max_failed_share": 0.05, **spec,
        }  # fmt: skip
        locators = {"teacher": str(self.place)}
        return Step("completions", whole, (("problems", parent),), label="completions", locators=locators)

    def ask(self, *args: Any, **spec: Any) -> Published:
        step = self.wanted(*args, **spec)
        return run(self.store, "completions", step.spec, step.parents, step.locators)

    def behave(self, **behaviour: Any) -> None:
        (self.place / "behaviour.json").write_text(json.dumps(behaviour))

    def asked(self) -> list[list[str]]:
        """The calls since the last time."""
        path = self.place / "asked.jsonl"
        calls = read_jsonl(path) if path.exists() else []
        path.unlink(missing_ok=True)
        return calls  # type: ignore[return-value]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_rows_stand_in_problem_order(desk: Desk) -> None:
    published = desk.ask(num_problems=10, samples=2)
    rows = read_jsonl(published.path / "completions.jsonl")
    assert [row["sample_index"] for row in rows] == [0, 1] * 10
    assert all(row["text"] == f"answer to {row['key']}" for row in rows)
    assert list(rows[0]) == sorted(
        ["key", "problem_id", "sample_index", "seed", "text", "num_tokens", "finish_reason", "reason"]
    )
    counts = {name: published.counts[name] for name in ("num_requests", "num_asked", "num_failed", "num_tokens")}
    assert counts == {"num_requests": 20, "num_asked": 20, "num_failed": 0, "num_tokens": 40}
    assert [len(call) for call in desk.asked()] == [4, 4, 4, 4, 4]


def test_more_problems_or_samples_ask_only_for_what_is_new(desk: Desk) -> None:
    desk.ask(num_problems=6)
    first = [key for call in desk.asked() for key in call]
    more = desk.ask(num_problems=10)
    second = [key for call in desk.asked() for key in call]
    assert len(second) == 4 and not set(second) & set(first)
    assert more.counts["num_asked"] == 4 and more.counts["num_requests"] == 10
    desk.ask(num_problems=10, samples=3)
    third = [key for call in desk.asked() for key in call]
    assert len(third) == 20 and not set(third) & {*first, *second}
    assert desk.ask(num_problems=8, samples=2).counts["num_asked"] == 0
    assert desk.asked() == []


def test_an_upgrade_that_raises_the_algorithm_version_asks_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    before = desk.ask()
    desk.asked()
    monkeypatch.setitem(ALGORITHM_VERSIONS, "completions", ALGORITHM_VERSIONS["completions"] + 1)
    after = desk.ask()
    assert after.identity != before.identity and after.counts["num_asked"] == 0 and desk.asked() == []
    assert (after.path / "completions.jsonl").read_bytes() == (before.path / "completions.jsonl").read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"teacher": {"model": "other"}}, {"teacher": {"model": "m", "system": "Be brief."}},
     {"sampling": {**SAMPLING, "temperature": 0.8}}],
    ids=["seed", "model", "system", "sampling"],
)  # fmt: skip
def test_whatever_changes_an_answer_changes_every_key(desk: Desk, change: dict[str, Any]) -> None:
    desk.ask()
    first = {key for call in desk.asked() for key in call}
    desk.ask(**change)
    assert not first & {key for call in desk.asked() for key in call}


def test_what_changes_no_answer_changes_no_key(desk: Desk) -> None:
    desk.ask()
    desk.asked()
    desk.ask(batch_size=3, max_failed_share=0.5)
    assert desk.asked() == []


def test_a_stopped_step_goes_on_in_the_batches_it_would_have_had(desk: Desk, tmp_path: Path) -> None:
    whole = Desk(tmp_path / "other") if (tmp_path / "other").mkdir() is None else desk
    whole.ask(num_problems=18)
    expected = whole.asked()
    desk.behave(calls=2)
    with pytest.raises(CompletionError, match="enough"):
        desk.ask(num_problems=18)
    desk.behave()
    desk.ask(num_problems=18)
    assert desk.asked() == expected
    requests = [
        Request.of({"teacher": {"model": "m"}, "sampling": SAMPLING, "seed": 1,
                    "completer": "tests.completers.test_stage:Counting"}, "", f"{'long ' * (i % 3)}question {i}", 0)
        for i in range(18)
    ]  # fmt: skip
    assert expected == [[request.key for request in batch] for batch in batches_of(requests, 4)]


def test_a_streaming_completer_stopped_anywhere_asks_only_for_the_rest(desk: Desk) -> None:
    desk.behave(calls=7)
    with pytest.raises(CompletionError, match="enough"):
        desk.ask(completer="Streaming")
    assert len(desk.asked()) == 7
    desk.behave()
    assert desk.ask(completer="Streaming").counts["num_asked"] == 3
    assert len(desk.asked()) == 3


def test_failures_within_the_share_are_rows_and_are_asked_again_only_if_the_step_is(desk: Desk) -> None:
    desk.behave(fail=["question 3"])
    published = desk.ask(max_failed_share=0.1)
    rows = read_jsonl(published.path / "completions.jsonl")
    assert [(row["finish_reason"], row["reason"]) for row in rows if row["finish_reason"] != "stop"] == [
        ("failed", "told to")
    ]
    assert published.counts["num_failed"] == 1
    desk.asked()
    desk.behave()
    assert desk.ask(max_failed_share=0.2).counts["num_asked"] == 1
    assert [len(call) for call in desk.asked()] == [1]


def test_too_many_failures_stop_the_step_at_once_and_keep_the_answers(desk: Desk) -> None:
    desk.behave(fail=["question 3", "question 6"])
    with pytest.raises(CompletionError, match=r"2 of \d+ requests failed so far, .*the first reason: 'told to'"):
        desk.ask(max_failed_share=0.1, completer="Streaming")
    assert len(desk.asked()) == 7, "question 6 is the second failure; nothing after it is asked"
    desk.behave()
    assert desk.ask(max_failed_share=0.1, completer="Streaming").counts["num_asked"] == 5


def test_two_experiments_at_once_ask_a_teacher_once(desk: Desk) -> None:
    errors: list[BaseException] = []

    def want(**spec: Any) -> None:
        try:
            desk.ask(**spec)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=want, kwargs={"num_samples": n, "samples": n}) for n in (1, 2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    asked = Counter(key for call in desk.asked() for key in call)
    assert len(asked) == 20 and set(asked.values()) == {1}


def test_the_journal_holds_prompt_engine_and_settings(desk: Desk) -> None:
    desk.ask()
    directory = journal_dir(desk.store, journal_scope({"model": "m"}, SAMPLING, "tests.completers.test_stage:Counting"))
    row = read_jsonl(directory / "rows.jsonl")[0]
    assert {"prompt", "prompt_tokens", "seconds", "attempts", "engine", "left", "seed", "finish_reason"} <= set(row)
    (engine,) = read_jsonl(directory / "engines.jsonl")
    assert engine == {"engine": "Counting", "id": row["engine"]}
