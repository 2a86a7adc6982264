"""From a model string to what answers it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.errors import NotFound, Unavailable
from adapters.records import BaseModel
from adapters.registry import RegistryRows
from adapters.routes import Route
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
    assert {v.state for v in built.wanted} == {VersionState.STAGED, VersionState.PROVED}
    assert not {v.state for v in built.leaving} & {v.state for v in built.wanted}


def test_a_models_creation_time_does_not_change_between_lists() -> None:
    assert snapshot(ONE, revision=1).models == snapshot(ONE, revision=2).models
