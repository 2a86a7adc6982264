"""From a model string to what answers it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import NotFound, Unavailable
from adapters.records import BaseModel
from adapters.registry import RegistryRows
from adapters.routes import Challenger, Route
from adapters.versions import VersionRecord, VersionState
from gateway import routing
from tests.unit.gateway.test_engines import version

ONE = version()
TWO = replace(ONE, number=2, digest="sha256:" + "1" * 64)


def snapshot(*versions: VersionRecord, routes: tuple[Route, ...] = (), revision: int = 1) -> routing.Snapshot:
    rows = RegistryRows(
        revision=revision,
        base_models=(BaseModel("base", None, 5.0), BaseModel("elsewhere", None, 5.0)),
        versions=versions,
        routes=routes,
        keys=(),
        keys_required=False,
    )
    return routing.build(rows, ("base",))


def test_a_route_answers_with_its_default_and_a_pin_with_its_version() -> None:
    built = snapshot(ONE, TWO, routes=(Route("support", "support@1", (), 7.0),))
    assert routing.resolve(built, "support").version == ONE
    assert routing.resolve(built, "support@2").version == TWO
    assert routing.resolve(built, "base").version is None
    assert dict(routing.resolve(built, "support").headers) == {
        b"x-burnish-adapter": b"support@1 sha256:" + b"0" * 64,
        b"x-burnish-route": b"support",
    }


def test_a_name_carries_the_digest_so_that_no_engine_can_answer_with_other_weights() -> None:
    built = snapshot(ONE, TWO)
    assert routing.resolve(built, "support@1").served == "support@1.000000000000"
    assert routing.resolve(built, "support@2").served == "support@2.111111111111"


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFound) as caught:
        routing.resolve(snapshot(ONE), "nope")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("state", [s for s in VersionState if s is not VersionState.PROVED])
def test_promise_04_only_a_proved_version_takes_traffic(state: VersionState) -> None:
    built = snapshot(replace(ONE, state=state), routes=(Route("support", "support@1", (), 7.0),))
    for name in ("support", "support@1"):
        with pytest.raises((NotFound, Unavailable)):
            routing.resolve(built, name)
        assert name not in [model.id for model in built.models]


def test_a_version_that_is_being_proved_asks_to_wait() -> None:
    with pytest.raises(Unavailable) as caught:
        routing.resolve(snapshot(replace(ONE, state=VersionState.STAGED)), "support@1")
    assert caught.value.retry_after_seconds == 1


def test_a_version_for_a_base_that_nobody_serves_says_so() -> None:
    with pytest.raises(NotFound) as caught:
        routing.resolve(snapshot(replace(ONE, base_model="elsewhere")), "support@1")
    assert "elsewhere" in caught.value.message


def test_engines_are_wanted_to_hold_what_is_proved_or_under_test_and_nothing_else() -> None:
    built = snapshot(*(replace(ONE, number=i, state=s) for i, s in enumerate(VersionState, 1)))
    under_test = {VersionState.CANDIDATE, VersionState.STAGED}
    assert {v.state for v in built.wanted} == under_test | {VersionState.PROVED}
    assert not {v.state for v in built.leaving} & {v.state for v in built.wanted}


def test_a_models_creation_time_does_not_change_between_lists() -> None:
    assert snapshot(ONE, revision=1).models == snapshot(ONE, revision=2).models


# -- splits ----------------------------------------------------------------------------------------
UNITS = [f"user:{number}" for number in range(4000)]


def split(*shares: tuple[str, float], versions: tuple[VersionRecord, ...] = (ONE, TWO)) -> routing.Snapshot:
    challengers = tuple(Challenger(variant, share) for variant, share in shares)
    return snapshot(*versions, routes=(Route("support", "base", (), 7.0, challengers=challengers),))


def chosen(built: routing.Snapshot, unit: str, name: str = "support") -> str:
    target, _ = routing.choose(built, routing.resolve(built, name), unit)
    return target.version.ref if target.version else target.base


@given(unit=st.text(), share=st.floats(0.01, 0.98))
def test_a_unit_keeps_the_variant_that_it_got(unit: str, share: float) -> None:
    assert chosen(split(("support@1", share)), unit) == chosen(split(("support@1", share)), unit)


@pytest.mark.parametrize("shares", [(0.05,), (0.5,), (0.1, 0.3)])
def test_each_variant_has_its_share_of_the_units(shares: tuple[float, ...]) -> None:
    refs = ("support@1", "support@2")
    built = split(*zip(refs, shares, strict=False))
    got = [chosen(built, unit) for unit in UNITS]
    for ref, share in zip(("base", *refs), (1 - sum(shares), *shares), strict=False):
        sigma = math.sqrt(share * (1 - share) / len(UNITS))
        assert abs(got.count(ref) / len(UNITS) - share) < 4 * sigma, ref


@given(low=st.floats(0.01, 0.9), more=st.floats(0.001, 0.09))
def test_a_share_that_grows_moves_only_the_units_that_it_wins(low: float, more: float) -> None:
    before, after = split(("support@1", low)), split(("support@1", low + more))
    for unit in UNITS[:200]:
        was, now = chosen(before, unit), chosen(after, unit)
        assert now in (was, "support@1")


def test_two_routes_split_their_units_independently() -> None:
    challengers = (Challenger("support@1", 0.5),)
    both = tuple(Route(name, "base", (), 7.0, challengers=challengers) for name in ("one", "two"))
    built = snapshot(ONE, routes=both)
    same = sum(chosen(built, unit, "one") == chosen(built, unit, "two") for unit in UNITS)
    assert abs(same / len(UNITS) - 0.5) < 4 * 0.5 / math.sqrt(len(UNITS))


def test_a_choice_says_how_likely_it_was_and_what_answers() -> None:
    built = split(("support@1", 0.25), ("support@2", 0.25))
    for unit in UNITS[:50]:
        target, propensity = routing.choose(built, routing.resolve(built, "support"), unit)
        assert propensity == (0.25 if target.version else 0.5)
        assert target.name == "support"
        says = f"{target.version.ref} {target.version.digest}" if target.version else "base"
        assert dict(target.headers) == {
            b"x-burnish-adapter": says.encode(),
            b"x-burnish-route": b"support",
        }


def test_what_is_asked_by_its_own_name_is_never_split() -> None:
    built = split(("support@1", 0.9))
    for name in ("base", "support@1", "support@2"):
        for unit in UNITS[:20]:
            target, propensity = routing.choose(built, routing.resolve(built, name), unit)
            assert (target, propensity) == (built.targets[name], 1.0)


@pytest.mark.parametrize("state", [s for s in VersionState if s is not VersionState.PROVED])
def test_promise_04_a_challenger_that_is_not_proved_leaves_its_share_to_the_default(
    state: VersionState,
) -> None:
    ill = replace(ONE, state=state)
    built = split(("support@1", 0.5), ("support@2", 0.2), versions=(ill, TWO))
    got = {chosen(built, unit) for unit in UNITS[:300]}
    assert got == {"base", "support@2"}
    assert [arm.share for arm in built.arms["support"]] == [0.8, 0.2]
    assert split(("support@1", 0.5), versions=(ill,)).arms == {}
