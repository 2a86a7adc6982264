"""The choice among engines: prefixes stay at home, loads stay bounded, and what cannot answer is not asked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.engine_settings import EngineSettings
from adapters.settings import Health
from adapters.versions import VersionRecord, VersionState
from gateway.engines import LOAD_BOUND, Engine, Engines, EngineState
from gateway.routing import Target
from gateway.upstream import Pool

BASE = Target("base", "base", None, ())
HEALTH = Health(failures_to_eject=3)


def version(name: str = "support") -> VersionRecord:
    return VersionRecord(
        name=name, number=1, digest="sha256:" + "0" * 64, base_model="base", base_digest=None, rank=8,
        target_modules=("q_proj",), size_bytes=1, state=VersionState.PROVED, reason=None, origin="import",
        approval={}, fingerprint=None, created=0.0,
    )  # fmt: skip


ADAPTER = Target("support", "base", version(), ())


async def engines(count: int) -> Engines:
    made = [
        Engine(
            EngineSettings(name=f"e{i}", kind="vllm", model="base", url="http://127.0.0.1:1"),
            Pool("http://127.0.0.1:1"),
        )
        for i in range(count)
    ]
    for engine in made:
        engine.state = EngineState.UP
    return Engines(made, HEALTH)


async def test_one_conversation_stays_on_one_engine() -> None:
    group = await engines(4)
    homes = {group.pick(BASE, b"conversation %d" % (i % 50)) for i in range(500)}
    assert len(homes) == 4
    for i in range(50):
        assert len({group.pick(BASE, b"conversation %d" % i) for _ in range(10)}) == 1


async def test_an_engine_more_moves_only_its_share_of_conversations() -> None:
    four, five = await engines(4), await engines(5)
    keys = [b"conversation %d" % i for i in range(2000)]
    moved = [key for key in keys if four.pick(BASE, key).name != five.pick(BASE, key).name]  # type: ignore[union-attr]
    assert all(five.pick(BASE, key).name == "e4" for key in moved)  # type: ignore[union-attr]
    assert 0.15 < len(moved) / len(keys) < 0.25


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200))
def test_no_engine_carries_more_than_its_bound_however_alike_the_conversations(keys: list[int]) -> None:
    async def check() -> None:
        group = await engines(4)
        for taken, key in enumerate(keys, 1):
            engine = group.pick(BASE, b"%d" % key)
            assert engine is not None
            group.begin(engine, BASE)
            assert engine.outstanding <= LOAD_BOUND * taken / 4 + 1

    asyncio.run(check())


async def test_without_a_conversation_the_least_busy_engine_is_asked() -> None:
    group = await engines(3)
    for engine, outstanding in zip(group.all, (5, 1, 3), strict=True):
        engine.outstanding = outstanding
    assert group.pick(BASE, b"") is group.all[1]


async def test_only_engines_that_hold_the_adapter_are_asked() -> None:
    group = await engines(3)
    assert group.pick(ADAPTER, b"x") is None
    group.all[2].held = frozenset({ADAPTER.served or ""})
    assert {group.pick(ADAPTER, b"%d" % i) for i in range(20)} == {group.all[2]}


@pytest.mark.parametrize("state", [s for s in EngineState if s is not EngineState.UP])
async def test_an_engine_that_is_not_up_is_not_asked(state: EngineState) -> None:
    group = await engines(2)
    group.all[0].state = state
    assert Counter(group.pick(BASE, b"%d" % i) for i in range(20)) == {group.all[1]: 20}


async def test_an_engine_that_failed_this_request_is_asked_again_only_when_no_other_is_left() -> None:
    group = await engines(2)
    home = group.pick(BASE, b"x")
    assert home is not None
    assert group.pick(BASE, b"x", [home]) is not home
    assert group.pick(BASE, b"x", group.all) is home


async def test_failures_in_a_row_eject_and_an_answer_between_them_does_not() -> None:
    group = await engines(2)
    engine = group.all[0]
    for _ in range(2):
        group.failed(engine, "x")
    group.succeeded(engine)
    for _ in range(2):
        group.failed(engine, "x")
    assert engine.state is EngineState.UP
    group.failed(engine, "x")
    assert engine.state is EngineState.EJECTED


async def test_the_last_engine_is_ejected_only_when_it_cannot_be_reached() -> None:
    group = await engines(1)
    for _ in range(10):
        group.failed(group.all[0], "x")
    assert group.all[0].state is EngineState.UP
    group.failed(group.all[0], "x", at_once=True)
    assert group.all[0].state is EngineState.EJECTED


async def test_each_ejection_lasts_longer_up_to_the_limit() -> None:
    group = await engines(1)
    engine = group.all[0]
    waits = []
    for _ in range(8):
        engine.state = EngineState.UP
        began = time.monotonic()
        group.eject(engine, "x")
        waits.append(round(engine.eject_until - began, 1))
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_lost_adapter_takes_the_engine_out_until_it_is_back() -> None:
    group = await engines(1)
    engine = group.all[0]
    served = ADAPTER.served or ""
    engine.held = frozenset({served})
    group.lost_adapter(engine, served)
    assert engine.state is EngineState.SYNCING
    assert group.pick(BASE, b"x") is None
    assert group.could(BASE)


async def test_every_ejection_counts_though_the_wait_begins_anew() -> None:
    group = await engines(1)
    (engine,) = group.all
    group.eject(engine, "away")
    engine.eject_until = -1e9
    group.up(engine)
    group.succeeded(engine)
    assert (engine.ejections, engine.ejected) == (0, 1)
    group.eject(engine, "away")
    assert (engine.ejections, engine.ejected) == (1, 2)


async def test_an_engine_knows_whose_requests_it_has() -> None:
    group = await engines(1)
    (engine,) = group.all
    for target in (BASE, ADAPTER, ADAPTER):
        group.begin(engine, target)
    assert engine.by_target == {("base", "base"): 1, ("base", "support"): 2}
    for target in (BASE, ADAPTER):
        group.end(engine, target)
    assert engine.by_target == {("base", "support"): 1}
