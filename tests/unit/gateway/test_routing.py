"""From a model string to what answers it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import NotFound, Unavailable
from adapters.experiment_records import Experiment, ExperimentState, new_experiment
from adapters.policy import parse_policy
from adapters.records import BaseModel
from adapters.registry import RegistryRows
from adapters.routes import Challenger, Route
from adapters.verdicts import without
from adapters.versions import VersionRecord, VersionState
from gateway import routing
from tests.observed import plan
from tests.unit.gateway.test_engines import version

ONE = version()
TWO = replace(ONE, number=2, digest="sha256:" + "1" * 64)


def snapshot(
    *versions: VersionRecord,
    routes: tuple[Route, ...] = (),
    experiments: tuple[Experiment, ...] = (),
    revision: int = 1,
) -> routing.Snapshot:
    rows = RegistryRows(
        revision=revision,
        base_models=(BaseModel("base", None, 5.0), BaseModel("elsewhere", None, 5.0)),
        versions=versions,
        routes=routes,
        experiments=experiments,
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
    target = routing.choose(built, routing.resolve(built, name), unit).target
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
        choice = routing.choose(built, routing.resolve(built, "support"), unit)
        target, propensity = choice.target, choice.propensity
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
            choice = routing.choose(built, routing.resolve(built, name), unit)
            assert choice == routing.Choice(built.targets[name], 1.0)


@pytest.mark.parametrize("state", [s for s in VersionState if s is not VersionState.PROVED])
def test_promise_04_a_challenger_that_is_not_proved_leaves_its_share_to_the_default(
    state: VersionState,
) -> None:
    ill = replace(ONE, state=state)
    built = split(("support@1", 0.5), ("support@2", 0.2), versions=(ill, TWO))
    got = {chosen(built, unit) for unit in UNITS[:300]}
    assert got == {"base", "support@2"}
    assert [arm.share for arm in built.splits["support"].arms] == [0.8, 0.2]
    assert split(("support@1", 0.5), versions=(ill,)).splits == {}


# -- experiments -----------------------------------------------------------------------------------
def begun(*challengers: str, route: str = "support", salt: str = "salt", **parts: Any) -> Experiment:
    """On a route whose default is `base`."""
    made = new_experiment("e", route, "base", plan(*(challengers or ("support@1",)), **parts), "anna", 5.0)
    return replace(made, id=f"exp_{route}", salt=salt)


def on(*experiments: Experiment, versions: tuple[VersionRecord, ...] = (ONE, TWO)) -> routing.Snapshot:
    routes = tuple(Route(each.route, each.promoted or "base", (), 7.0) for each in experiments)
    return snapshot(*versions, routes=routes, experiments=experiments)


def choice(built: routing.Snapshot, unit: str, name: str = "support") -> routing.Choice:
    return routing.choose(built, routing.resolve(built, name), unit)


def assigned(built: routing.Snapshot, unit: str, name: str = "support") -> str:
    assignment = choice(built, unit, name).assignment
    assert assignment is not None
    return assignment.variant


def shared(made: Experiment, **shares: float) -> Experiment:
    """With these shares of `support@N`, written `vN`; the control has the rest."""
    given = {f"support@{name[1:]}": share for name, share in shares.items()}
    return replace(made, shares={"base": 1 - math.fsum(given.values()), **given})


@given(unit=st.text(), share=st.floats(0.01, 0.98))
def test_a_unit_keeps_its_variant_in_every_process(unit: str, share: float) -> None:
    one, other = (on(shared(begun(), v1=share)) for _ in range(2))
    assert assigned(one, unit) == assigned(other, unit)


@pytest.mark.parametrize("shares", [(0.05,), (0.5,), (0.1, 0.3)])
def test_each_variant_of_an_experiment_has_its_share_of_the_units(shares: tuple[float, ...]) -> None:
    refs = ("support@1", "support@2")[: len(shares)]
    made = begun(*refs)
    given = {"base": 1 - sum(shares), **dict(zip(refs, shares, strict=True))}
    got = [assigned(on(replace(made, shares=given)), unit) for unit in UNITS]
    for ref, share in given.items():
        sigma = math.sqrt(share * (1 - share) / len(UNITS))
        assert abs(got.count(ref) / len(UNITS) - share) < 4 * sigma, ref


def test_a_share_from_10_to_20_percent_moves_only_the_units_that_it_wins() -> None:
    before, after = (on(shared(begun(), v1=share)) for share in (0.1, 0.2))
    moved = 0
    for unit in UNITS:
        was, now = assigned(before, unit), assigned(after, unit)
        assert now in (was, "support@1")
        moved += was != now
    assert abs(moved / len(UNITS) - 0.1) < 4 * math.sqrt(0.1 * 0.9 / len(UNITS))


def agreement(one: routing.Snapshot, other: routing.Snapshot, name: str = "support") -> float:
    return sum(assigned(one, u) == assigned(other, u, name) for u in UNITS) / len(UNITS)


def test_the_next_experiment_mixes_the_units_anew() -> None:
    half = 4 * 0.5 / math.sqrt(len(UNITS))
    assert abs(agreement(on(begun(salt="one")), on(begun(salt="two"))) - 0.5) < half


def test_two_experiments_on_two_routes_are_independent() -> None:
    built = on(begun(), begun(route="sales"))
    half = 4 * 0.5 / math.sqrt(len(UNITS))
    assert abs(agreement(built, built, "sales") - 0.5) < half


def test_a_stopped_challengers_units_go_to_the_others_and_nobody_else_moves() -> None:
    made = begun("support@1", "support@2")
    left = replace(made, dropped={"support@1": "why"}, shares=without(made, {"support@1": "why"}), epoch=1)
    before, after = on(made), on(left)
    for unit in UNITS:
        was = assigned(before, unit)
        assert assigned(after, unit) in ({"base", "support@2"} if was == "support@1" else {was})
    propensities = {assigned(after, unit): choice(after, unit).propensity for unit in UNITS[:100]}
    assert propensities == pytest.approx({"base": 1 / 2, "support@2": 1 / 2})


def test_after_adaptation_a_stopped_challenger_has_no_units() -> None:
    made = begun("support@1", "support@2", policy="adaptive")
    left = replace(made, dropped={"support@1": "why"}, shares={"base": 0.4, "support@2": 0.6})
    got = [assigned(on(left), unit) for unit in UNITS]
    assert set(got) == {"base", "support@2"}
    assert abs(got.count("base") / len(UNITS) - 0.4) < 4 * math.sqrt(0.24 / len(UNITS))


def test_an_assignment_says_what_was_given_and_why_it_counts() -> None:
    built = on(replace(shared(begun(), v1=0.25), epoch=3))
    for unit in UNITS[:50]:
        found = choice(built, unit)
        assert found.assignment is not None
        assert (found.assignment.experiment, found.assignment.epoch) == ("exp_support", 3)
        assert (found.assignment.unit, found.assignment.failed_over) == (unit, False)
        is_challenger = found.assignment.variant == "support@1"
        assert found.target.version == (ONE if is_challenger else None)
        assert found.propensity == (0.25 if is_challenger else 0.75)
        assert found.target.name == "support"
        assert (found.control is not None) is is_challenger, "the control answers where the challenger cannot"
        assert found.shadow is None


@pytest.mark.parametrize("state", [s for s in VersionState if s is not VersionState.PROVED])
def test_promise_04_where_a_challenger_cannot_answer_the_control_does_and_it_is_on_record(
    state: VersionState,
) -> None:
    able, unable = on(begun()), on(begun(), versions=(replace(ONE, state=state), TWO))
    for unit in UNITS[:200]:
        found = choice(unable, unit)
        assert found.target.version is None
        assert found.control is None
        assert found.assignment is not None
        assert found.assignment.variant == assigned(able, unit), "whoever got it keeps it"
        assert found.assignment.failed_over is (found.assignment.variant == "support@1")


def test_where_the_control_of_a_hold_back_cannot_answer_nothing_is_split() -> None:
    made = replace(shared(begun(), v1=0.9), state=ExperimentState.MEASURING, verdict={"variant": "support@1"})
    found = [choice(on(made), unit) for unit in UNITS]
    assert abs(sum(each.target.version is None for each in found) / len(UNITS) - 0.1) < 0.02
    assert all(each.assignment is not None for each in found)
    elsewhere = snapshot(
        ONE, routes=(Route("support", "support@1", (), 7.0),), experiments=(replace(made, control="gone"),)
    )
    assert choice(elsewhere, "u") == routing.Choice(elsewhere.targets["support"], 1.0)


def test_in_a_shadow_everybody_has_the_control_and_the_challenger_answers_too() -> None:
    built = on(begun(policy="shadow", shadow_share=0.25, shadow_requests=7, shadow_at_once=3))
    for unit in UNITS[:50]:
        found = choice(built, unit)
        assert (found.target.version, found.propensity) == (None, 1.0)
        assert found.assignment is not None
        assert found.assignment.variant == "base"
        shadow = found.shadow
        assert shadow is not None
        assert (shadow.variant, shadow.target.version) == ("support@1", ONE)
        assert (shadow.share, shadow.requests, shadow.at_once) == (0.25, 7, 3)
    ill = on(begun(policy="shadow"), versions=(replace(ONE, state=VersionState.QUARANTINED),))
    assert choice(ill, "u").shadow is None


def test_what_is_pinned_is_no_evidence() -> None:
    built = on(begun())
    for name in ("base", "support@1", "support@2"):
        assert choice(built, "u", name) == routing.Choice(built.targets[name], 1.0)


def test_an_experiment_on_a_route_takes_the_place_of_its_challengers() -> None:
    """They exclude each other; should both be there, what is measured must be what was assigned."""
    challenged = Route("support", "base", (), 7.0, challengers=(Challenger("support@2", 0.9),))
    built = snapshot(ONE, TWO, routes=(challenged,), experiments=(begun(),))
    assert {assigned(built, unit) for unit in UNITS[:100]} == {"base", "support@1"}


def test_the_form_of_the_routes_answers_goes_with_the_assignment() -> None:
    policy = parse_policy({"format": {"regex": "yes|no"}})
    routes = (Route("support", "base", (), 7.0, policy),)
    found = choice(snapshot(ONE, routes=routes, experiments=(begun(),)), "u")
    assert found.assignment is not None
    assert found.assignment.form.regex == "yes|no"
