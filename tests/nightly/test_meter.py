"""What a night spends, and what makes it stop; which night is under way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from flows.meter import Meter, metered, sampled_tokens
from mot_core.artifacts import Store
from mot_core.errors import NightUnderWay
from mot_core.nightly.canary import CANARY
from mot_core.nightly.digest import Estimate
from mot_core.nightly.nights import ANOTHER_DAY_SECONDS, DIGEST, Night, night_under_way
from mot_core.nightly.spec import Budget
from mot_core.steps import Step
from tasks.invocation import Halt
from tests.nightly.made_up import first_night
from tests.processes import wait_until

STEP = Step("completions", {}, (), "generate ann")


def published(reused: bool = False, **counts: int) -> dict[str, Any]:
    return {"event": "published", "record": {"reused": reused, "counts": counts}}


def meter_of(night: Night, **budget: Any) -> Meter:
    return Meter(night, Budget(**budget), Halt(), lambda: None)


def test_what_a_journal_held_is_not_paid_again() -> None:
    assert sampled_tokens({"num_tokens": 1_000, "num_requests": 10, "num_asked": 4}) == 400
    assert sampled_tokens({"num_tokens": 0, "num_requests": 0, "num_asked": 0}) == 0
    assert sampled_tokens({"sampled_tokens": 70, "tokens": 900}) == 70 and sampled_tokens({"num_tokens": 9}) == 0


def test_a_visit_fits_into_what_all_attempts_have_left(tmp_path: Path) -> None:
    meter = meter_of(first_night(tmp_path), minutes=2, max_completion_tokens=2_000)  # 90 s and 1,234 tokens are spent
    assert meter.fits(Estimate(20.0, 700)) and not meter.fits(Estimate(31.0, 0)) and not meter.fits(Estimate(0.0, 800))
    assert meter_of(first_night(tmp_path), minutes=2).fits(Estimate(20.0, 10**9))


def test_tokens_of_published_steps_stop_a_night(tmp_path: Path) -> None:
    night, told = first_night(tmp_path), []
    meter = meter_of(night, minutes=60, max_completion_tokens=1_300)
    listen = meter.watching(lambda step, event: told.append(event))
    listen(STEP, published(reused=True, num_tokens=500, num_requests=5, num_asked=5))
    listen(STEP, {"event": "progress"})
    assert night.spent_tokens == 1_234 and meter.halt.reason is None and len(told) == 2
    listen(STEP, published(num_tokens=500, num_requests=5, num_asked=5))
    assert night.spent_tokens == 1_734 and meter.halt.reason == "the night's 1,300 completion tokens are spent"


def test_minutes_of_all_attempts_stop_a_night(tmp_path: Path) -> None:
    meter = meter_of(first_night(tmp_path), minutes=1)
    meter.look()
    assert meter.halt.reason == "the night's 1 minutes are spent"


def test_somebody_who_comes_is_seen_within_a_poll(tmp_path: Path) -> None:
    night, here, halt = first_night(tmp_path), [], Halt()
    night.directory.mkdir()

    def occupied() -> str | None:
        if len(here) == 1:
            here.append("asked")
            raise ConnectionError("the server is away")
        return "run x is active" if here else None

    with metered(night, Budget(minutes=60), halt, occupied, 0.01):
        time.sleep(0.05)
        assert halt.reason is None
        here.append("come")
        wait_until(lambda: halt.reason is not None, 60.0, "the halt")
    assert halt.reason == "run x is active"
    assert json.loads((night.directory / "night.json").read_text())["spent_seconds"] > 90.0


def test_a_night_without_a_digest_is_gone_on_with(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    with night_under_way(store, "lab") as night:
        assert night.name == "0001" and list(night.earlier(DIGEST)) == []
        night.visits.append({"cell": "a", "state": "running"})
        night.spent_seconds = 5.0
        night.save()
        with (
            pytest.raises(NightUnderWay, match="nightly lab is under way in .* wait for its digest"),
            night_under_way(store, "lab"),
        ):
            raise AssertionError("unreachable")
        with night_under_way(store, "other") as other:
            assert other.name == "0001"
    with night_under_way(store, "lab") as again:
        assert again.name == "0001" and again.visits == night.visits and again.spent_seconds == 5.0
        again.budget_from -= ANOTHER_DAY_SECONDS + 1.0
        again.save()
    with night_under_way(store, "lab") as next_day:
        assert next_day.name == "0001" and next_day.spent_seconds == 0.0 and next_day.started == night.started
        (next_day.directory / DIGEST).write_text('{"cells": []}')
        (next_day.directory / CANARY).write_text("{torn")
    with night_under_way(store, "lab") as second:
        assert second.name == "0002" and second.last_digest() == {"cells": []} and second.canary() is None
        assert list(second.earlier(CANARY)) == []


def test_a_night_killed_before_its_first_record_is_begun_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    (store.root / "nightly" / "lab" / "0003").mkdir(parents=True)
    with night_under_way(store, "lab") as night:
        assert night.name == "0003" and night.visits == []
