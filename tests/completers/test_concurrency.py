"""When a request may be sent: the limit's arithmetic, holds, backoff, and what `Retry-After` says."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from mot_core.completers import concurrency
from mot_core.completers.concurrency import AdaptiveLimit, backoff_seconds, retry_after_seconds


async def admit_all(limit: AdaptiveLimit, number: int) -> list[int]:
    return [await asyncio.wait_for(limit.admit(), 30.0) for _ in range(number)]


def test_a_round_of_refusals_halves_once_and_a_round_of_answers_adds_one() -> None:
    async def check() -> None:
        limit = AdaptiveLimit(8)
        rounds = await admit_all(limit, 8)
        assert [limit.throttled(sent) for sent in rounds] == [True] + [False] * 7
        assert limit.limit == 4.0
        for _ in range(8):
            limit.release()
        rounds = await admit_all(limit, 4)
        assert limit.throttled(rounds[0]) and limit.limit == 2.0
        limit.answered()
        limit.answered()
        assert limit.limit == 2.0 + 1 / 2.0 + 1 / 2.5
        for _ in range(100):
            limit.answered()
        assert limit.limit == 8.0

    asyncio.run(check())


def test_what_flies_is_halved_not_what_might() -> None:
    async def check() -> None:
        limit = AdaptiveLimit(100)
        sent = (await admit_all(limit, 6))[0]
        limit.throttled(sent)
        assert limit.limit == 3.0

    asyncio.run(check())


def test_the_limit_never_falls_below_one() -> None:
    async def check() -> None:
        limit = AdaptiveLimit(3)
        for _ in range(5):
            limit.throttled(await limit.admit())
            limit.release()
        assert limit.limit == 1.0
        assert await limit.admit() == 5

    asyncio.run(check())


def test_places_are_given_in_order_and_never_more_than_the_limit() -> None:
    async def check() -> None:
        limit, order, most = AdaptiveLimit(3), [], 0

        async def take(name: int) -> None:
            nonlocal most
            await limit.admit()
            order.append(name)
            most = max(most, limit.in_flight)
            await asyncio.sleep(0.001)
            limit.release()

        await asyncio.gather(*(take(name) for name in range(20)))
        assert order == list(range(20))
        assert (most, limit.in_flight) == (3, 0)

    asyncio.run(check())


def test_a_cancelled_waiter_gives_its_place_to_the_next() -> None:
    async def check() -> None:
        limit = AdaptiveLimit(1)
        await limit.admit()
        first, second, third = (asyncio.create_task(limit.admit()) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        limit.release()  # gives the place to the second, which is cancelled before it runs
        second.cancel()
        assert await asyncio.wait_for(third, 30.0) == 0
        assert limit.in_flight == 1
        assert (await asyncio.gather(first, second, return_exceptions=True)).__len__() == 2

    asyncio.run(check())


def test_nothing_passes_before_a_hold_ends() -> None:
    async def check() -> None:
        loop, limit = asyncio.get_running_loop(), AdaptiveLimit(4)
        started = loop.time()
        limit.hold(0.05)
        limit.hold(0.01)  # a shorter one takes nothing back
        await asyncio.gather(*(limit.admit() for _ in range(4)))
        assert loop.time() - started >= 0.05

    asyncio.run(check())


def test_a_hold_that_comes_while_others_wait_binds_them_too() -> None:
    async def check() -> None:
        loop, limit = asyncio.get_running_loop(), AdaptiveLimit(1)
        await limit.admit()
        waiting = asyncio.create_task(limit.admit())
        await asyncio.sleep(0)
        started = loop.time()
        limit.hold(0.05)
        limit.release()
        await waiting
        assert loop.time() - started >= 0.05

    asyncio.run(check())


def test_backoff_has_full_jitter_doubles_and_is_capped() -> None:
    seconds = [backoff_seconds(failures, Random(5)) for failures in (1, 2, 3, 40)]
    share = Random(5).random()
    assert seconds == pytest.approx([share, 2 * share, 4 * share, concurrency.LONGEST_BACKOFF_SECONDS * share])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:28:10 GMT"}, None),
        ({"retry-after": "Fri, 01 Jan 1999 00:00:00 GMT"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Wed, 99 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds
