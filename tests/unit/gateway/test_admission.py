"""Places at the engines, on one event loop: who goes, who waits, who is refused, who is sent back."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from adapters.engine_settings import EngineSettings
from adapters.errors import Overloaded
from adapters.settings import Settings
from gateway.admission import Admission, Place
from gateway.engines import Engine, Engines, EngineState
from gateway.latency import Latencies
from gateway.traffic import Traffic
from gateway.upstream import Pool
from tests.conftest import MODEL

PEOPLE, LINES = Traffic.INTERACTIVE, Traffic.BATCH


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(places: int = 2, clock: Clock | None = None, **settings: Any) -> Admission:
    engine = EngineSettings(
        name="e", kind="vllm", model=MODEL, url="http://127.0.0.1:9", max_concurrent=places
    )
    whole = Settings(engines=(engine,), **settings)
    up = Engine(engine, Pool("http://127.0.0.1:9"), state=EngineState.UP)
    clock = clock or Clock()
    return Admission(whole, Engines([up], whole.health), Latencies(whole.targets, clock), clock)


async def enter(places: Admission, owner: str = "a", traffic: Traffic = PEOPLE, **more: Any) -> Place:
    place = await places.enter(MODEL, traffic, owner, **more)
    assert place is not None
    return place


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def lane(places: Admission, traffic: Traffic = PEOPLE) -> dict[str, int]:
    found: dict[str, int] = places.report()[MODEL][traffic.value]
    return found


async def test_a_request_waits_for_a_place_and_has_the_next_one() -> None:
    places = admission(2)
    first, second = await enter(places), await enter(places)
    third = asyncio.create_task(enter(places))
    await settle()
    assert not third.done()
    assert lane(places) == {"running": 2, "waiting": 1, "limit": 2}
    places.leave(first)
    place = await asyncio.wait_for(third, 5)
    places.leave(place)
    places.leave(second)
    assert lane(places) == {"running": 0, "waiting": 0, "limit": 2}


async def test_one_keys_flood_does_not_hold_up_another_keys_request() -> None:
    places = admission(2)
    held = [await enter(places, "flood"), await enter(places, "flood")]
    flood = [asyncio.create_task(enter(places, "flood")) for _ in range(50)]
    await settle()
    single = asyncio.create_task(enter(places, "single"))
    await settle()
    places.leave(held[0])
    await settle()
    assert single.done()
    assert not any(task.done() for task in flood)
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    places.leave(await single)
    places.leave(held[1])
    assert lane(places)["running"] == lane(places)["waiting"] == 0


async def test_a_full_queue_drops_whoever_has_most_in_it() -> None:
    places = admission(1, admission={"max_waiting": 3, "max_wait_seconds": 60})
    held = await enter(places, "flood")
    flood = [asyncio.create_task(enter(places, "flood")) for _ in range(3)]
    await settle()
    with pytest.raises(Overloaded) as refused:
        await enter(places, "flood")
    assert refused.value.status == 503
    assert refused.value.retry_after_seconds is not None
    assert refused.value.retry_after_seconds >= 1
    single = asyncio.create_task(enter(places, "single"))
    await settle()
    assert isinstance(flood[2].exception(), Overloaded)
    assert not flood[0].done()
    assert not flood[1].done()
    places.leave(held)
    places.leave(await asyncio.wait_for(flood[0], 5))
    places.leave(await asyncio.wait_for(single, 5))  # its turn, before the flood's next
    places.leave(await asyncio.wait_for(flood[1], 5))
    assert places.refused[PEOPLE] == 2


async def test_who_waits_too_long_is_told_when_to_come_again() -> None:
    places = admission(1, admission={"max_wait_seconds": 0.05})
    held = await enter(places)
    with pytest.raises(Overloaded):
        await enter(places)
    assert lane(places) == {"running": 1, "waiting": 0, "limit": 1}
    places.leave(held)


async def test_who_leaves_the_queue_takes_no_place() -> None:
    places = admission(1)
    held = await enter(places)
    gone = False
    waiting = asyncio.create_task(places.enter(MODEL, PEOPLE, "a", is_gone=lambda: gone))
    await settle()
    gone = True
    assert await asyncio.wait_for(waiting, 5) is None
    assert lane(places) == {"running": 1, "waiting": 0, "limit": 1}
    places.leave(held)


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_whatever_is_cancelled_when(seed: int) -> None:
    drawn = random.Random(seed)
    places = admission(3, admission={"max_waiting": 8, "max_wait_seconds": 0.2})
    most = 0

    async def visit(owner: str, traffic: Traffic) -> None:
        nonlocal most
        place = await places.enter(MODEL, traffic, owner)
        assert place is not None
        most = max(most, lane(places)["running"])
        try:
            await asyncio.sleep(drawn.random() / 200)
        finally:
            places.leave(place)

    tasks = []
    for _ in range(200):
        kind = drawn.choice((PEOPLE, PEOPLE, LINES))
        tasks.append(asyncio.create_task(visit(drawn.choice("abc"), kind)))
        if drawn.random() < 0.3:
            drawn.choice(tasks).cancel()
        if drawn.random() < 0.5:
            await asyncio.sleep(drawn.random() / 300)
        places.tick()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    for traffic in Traffic:
        assert lane(places, traffic)["running"] == lane(places, traffic)["waiting"] == 0
    assert 1 <= most <= 3


async def test_promise_07_a_person_who_comes_into_a_full_engine_sends_the_youngest_line_back() -> None:
    clock, sent_back = Clock(), list[int]()
    places = admission(8, clock)

    async def line(number: int) -> None:
        await enter(places, "batch", LINES, evict=lambda: sent_back.append(number))

    await line(0)
    for _ in range(10):  # nobody is there
        clock.now += 1.0
        places.tick()
    assert lane(places, LINES)["limit"] == 7, "all but the place that is reserved"
    for number in range(1, 7):
        await line(number)
    one = await enter(places)
    assert not sent_back
    two = await enter(places, "b")
    assert sent_back == [6], "the one that has done least"
    places.leave(one)
    places.leave(two)


async def test_promise_07_lines_go_back_when_people_wait_too_long() -> None:
    clock, sent_back = Clock(), list[Place]()
    places = admission(64, clock, targets={"ttft_p95_seconds": 1.0}, priority={"min_batch": 1})
    for _ in range(4):
        clock.now += 1.0
        places.tick()
        if lane(places, LINES)["limit"] < 16:
            await evictable(places, sent_back)

    def people(seconds: float) -> None:
        for _ in range(30):
            timing = places._latencies.begin("support", PEOPLE)
            clock.now += seconds
            timing.piece()
            timing.end()

    people(0.1)
    places.tick()
    running = lane(places, LINES)["running"]
    assert running >= 2
    for _ in range(3):  # each decision waits for what the one before it has done
        people(4.0)
        places.tick()
        await settle()
    assert places.headroom < 0
    assert lane(places, LINES)["limit"] == 1
    assert lane(places, LINES)["running"] == 1
    assert len(sent_back) >= running - 1
    places.peers_headroom = -1.0
    clock.now += 100.0
    places.tick()
    assert places.headroom == -1.0, "another gateway's people count as well"


async def evictable(places: Admission, sent_back: list[Place]) -> None:
    """A line that gives its place back as soon as it is sent back."""
    held: list[Place] = []

    def evict() -> None:
        sent_back.append(held[0])
        asyncio.get_running_loop().call_soon(places.leave, held[0])

    held.append(await enter(places, "batch", LINES, evict=evict))


async def test_promise_07_questions_of_an_evaluation_come_after_everybody_but_always_come() -> None:
    places = admission(64)
    places.headroom = 1.0
    free = [await enter(places, "run", Traffic.TRAINING) for _ in range(8)]
    for place in free:
        places.leave(place)
    places.headroom = -3.0
    assert lane(places, Traffic.TRAINING)["limit"] == 1


async def test_a_batch_has_no_more_places_than_people_leave() -> None:
    clock = Clock()
    places = admission(8, clock)
    held = [await enter(places) for _ in range(6)]
    for _ in range(10):
        clock.now += 1.0
        places.tick()  # nobody's latency is measured: the limit alone would let all seven in
    assert lane(places, LINES)["limit"] == 2
    for place in held:
        places.leave(place)
    assert lane(places, LINES)["limit"] == 7


async def test_promise_07_it_tells_training_when_lines_wait() -> None:
    places = admission(8)
    held = [await enter(places, "batch", LINES) for _ in range(lane(places, LINES)["limit"])]
    assert not places.lines_wait
    waiting = asyncio.create_task(enter(places, "batch", LINES))
    await settle()
    assert places.lines_wait
    places.leave(held[0])
    await waiting
    assert not places.lines_wait


async def test_without_priority_a_batch_may_have_every_place() -> None:
    places = admission(8, priority={"enabled": False})
    await enter(places)
    places.tick()
    assert lane(places, LINES)["limit"] == 8
