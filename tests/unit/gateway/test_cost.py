"""What engines cost is shared out by who has requests under way, and nothing of it is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.engine_settings import EngineSettings
from adapters.settings import Settings
from gateway.cost import HOUR_SECONDS, Costs
from gateway.engines import Engine, Engines, EngineState
from gateway.labels import Labels
from gateway.routing import Target
from gateway.upstream import Pool

URL = "http://127.0.0.1:9"


class Bench:
    """Two engines of one base model, the clock, and what they cost."""

    def __init__(self, *, most: int = 100, engine_hour: float = 0.0, **prices: float | None) -> None:
        self.now = 0.0
        tables = [
            EngineSettings(name=name, kind="vllm", model="base", url=URL, price_per_hour=price)
            for name, price in prices.items()
        ]
        settings = Settings(engines=tuple(tables), costs={"engine_hour": engine_hour, "currency": "EUR"})  # type: ignore[arg-type]
        made = [Engine(table, Pool(URL), state=EngineState.UP) for table in tables]
        self.engine = {engine.name: engine for engine in made}
        self.engines = Engines(made, settings.health)
        self.costs = Costs(settings, self.engines, Labels(most), lambda: self.now)

    def begin(self, engine: str, route: str) -> None:
        self.engines.begin(self.engine[engine], Target(route, "base", None, ()))

    def end(self, engine: str, route: str) -> None:
        self.engines.end(self.engine[engine], Target(route, "base", None, ()))

    def pass_hours(self, hours: float) -> None:
        self.now += hours * HOUR_SECONDS
        self.costs.count()


def about(**by_route: float) -> Any:
    return pytest.approx({("base", route): cost for route, cost in by_route.items()})


async def test_time_is_on_the_account_of_whose_requests_are_under_way() -> None:
    bench = Bench(a=2.0)
    for route in ("chat", "chat", "chat", "support"):
        bench.begin("a", route)
    bench.pass_hours(1)
    assert bench.costs.spent == about(chat=1.5, support=0.5)
    for _ in range(3):
        bench.end("a", "chat")
    bench.pass_hours(1)
    assert bench.costs.spent == about(chat=1.5, support=2.5)
    assert bench.costs.engine_hours == pytest.approx({"a": 2.0})
    assert bench.costs.currency == "EUR"


async def test_idle_time_is_on_the_account_of_no_route() -> None:
    bench = Bench(a=2.0)
    bench.begin("a", "chat")
    bench.end("a", "chat")
    bench.pass_hours(0.5)
    assert bench.costs.spent == {("base", ""): pytest.approx(1.0)}


async def test_an_engines_own_price_comes_before_the_common_one() -> None:
    bench = Bench(engine_hour=1.0, own=3.0, common=None, free=0.0)
    for name, route in (("own", "x"), ("common", "y"), ("free", "z")):
        bench.begin(name, route)
    bench.pass_hours(2)
    assert bench.costs.spent == about(x=6.0, y=2.0)
    assert bench.costs.engine_hours == pytest.approx({"own": 2.0, "common": 2.0, "free": 2.0})


async def test_an_engine_that_is_down_still_costs() -> None:
    bench = Bench(a=2.0)
    bench.engines.eject(bench.engine["a"], "away")
    bench.pass_hours(1)
    assert bench.costs.spent == {("base", ""): pytest.approx(2.0)}


async def test_gateways_that_share_an_engine_count_its_cost_once_together() -> None:
    first, second = Bench(a=2.0), Bench(a=2.0)
    first.begin("a", "chat")
    for bench in (first, second):
        bench.costs.gateways = 2
        bench.pass_hours(1)
    assert first.costs.spent == about(chat=1.0)
    assert second.costs.spent == {("base", ""): pytest.approx(1.0)}


async def test_routes_without_series_of_their_own_are_charged_together() -> None:
    bench = Bench(most=0, a=1.0)
    for number in range(100):
        bench.begin("a", f"route-{number}")
    bench.pass_hours(1)
    assert bench.costs.spent == about(other=1.0)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from("xyz"), st.floats(0, 3)), max_size=30
    )
)
async def test_whatever_happens_the_accounts_add_up_to_the_engines_price(
    steps: list[tuple[str, str, float]],
) -> None:
    bench = Bench(a=2.0, b=0.5)
    for name, route, hours in steps:
        bench.begin(name, route)
        bench.pass_hours(hours)
    hours = sum(step[2] for step in steps)
    assert sum(bench.costs.spent.values()) == pytest.approx(2.5 * hours)
