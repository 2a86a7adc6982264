"""Runs the users of a load test with Locust, in this process, from the first question to the last answer.

Importing it patches the process for gevent, so it is imported by `loadtests.run` alone, once the flags are known to be
right. Owns Locust's parts, signals and the watch over the client itself; does not judge.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping

from locust import LoadTestShape  # first: it patches what the others use
from locust.env import Environment
from locust.runners import LocalRunner

import gevent  # isort: skip
from gevent.event import Event  # isort: skip
from locust.contrib.fasthttp import FastHttpSession  # isort: skip
from locust.event import Events  # isort: skip

from loadtests.arrivals import ArrivalsUser
from loadtests.asking import ask, call
from loadtests.batch_user import BatchUser
from loadtests.measurement import Measurement
from loadtests.options import Options, User
from loadtests.plan import Plan
from loadtests.shapes import Shape
from loadtests.users import BurnishUser, ChatUser, FeedbackUser, MixedUser
from loadtests.workload import Ask, body

LAG_LOOK_SECONDS = 0.05
SPARE_SECONDS = 5.0
"""Beyond the time limit of an answer, before a user who does not end is ended."""

INTERRUPTED = "it was interrupted"

USERS: Mapping[User, type[BurnishUser]] = {
    User.CHAT: ChatUser,
    User.MIXED: MixedUser,
    User.FEEDBACK: FeedbackUser,
    User.BATCH: BatchUser,
}


class Unmeasurable(Exception):
    """The server is not there, or does not serve what is to be asked."""


class Course(LoadTestShape):
    """The shape, as Locust asks for it each second; one user in an open loop, who starts the others' acts."""

    abstract = True  # not to be found by Locust itself

    def __init__(self, plan: Plan, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._plan = plan
        self._shape = shape

    def tick(self) -> tuple[int, float] | None:
        options, now = self._plan.options, self._plan.now
        if now >= self._shape.seconds:
            self._plan.is_over = True
            return None
        if options.is_open:
            return 1, 1.0
        users = round(self._shape.at(now))
        return users, min(options.spawn_rate, max(1.0, self._shape.most))


def run(
    options: Options, measurement: Measurement, progress: Callable[[Measurement, float], None]
) -> int | None:
    """Fills the measurement; the signal that ended it early, if one did. Raises Unmeasurable."""
    logging.getLogger("locust.runners").setLevel(logging.ERROR)
    models = served(options)
    plan = Plan(options, measurement, models)
    shape = options.shape.after(options.warm_up_seconds)
    runner = _runner(plan, shape)
    ended, caught = Event(), _signals(plan)
    plan.begin = time.monotonic()
    runner.start_shape()
    assert runner.shape_greenlet is not None
    runner.shape_greenlet.link(lambda _: ended.set())
    watches = [gevent.spawn(_watch_lag, plan), gevent.spawn(_watch, plan, runner, progress)]
    while not ended.wait(0.1):
        if caught:
            plan.is_over = True
            measurement.end_early(INTERRUPTED, plan.now)
            runner.environment.stop_timeout = 0  # nobody waits for the answers
            gevent.spawn(runner.stop).join()
            break
    gevent.killall(watches)
    runner.quit()
    return caught[0] if caught else None


def served(options: Options) -> Mapping[str, float]:
    """The models and their weights, each of which has answered once. Raises Unmeasurable."""
    session = FastHttpSession(
        options.host,
        request_event=Events().request,  # type: ignore[no-untyped-call]
        user=None,
        network_timeout=options.timeout_seconds,
        connection_timeout=min(10.0, options.timeout_seconds),
    )
    headers = {} if options.api_key is None else {"authorization": f"Bearer {options.api_key}"}
    models = options.models or {_only_model(session, headers, options.host): 1.0}
    for model in models:
        asked = body(Ask(0.0, "Say something.", 2), model, f"{time.time_ns():x}", streams=True)
        answer = ask(session, asked, headers, seconds=options.timeout_seconds, name=model)
        if answer.error is not None:
            raise Unmeasurable(f"{options.host} does not answer as {model}: {answer.error}")
    return models


def _only_model(session: FastHttpSession, headers: Mapping[str, str], host: str) -> str:
    told = call(session, "GET", "/v1/models", headers, name="models")
    if told.error is not None:
        raise Unmeasurable(f"{host} does not say which models it has: {told.error}")
    names = [str(model["id"]) for model in told.json.get("data", ())]
    if len(names) != 1:
        raise Unmeasurable(f"say which model is asked: --model {' or '.join(names[:20]) or 'NAME'}")
    return names[0]


def _runner(plan: Plan, shape: Shape) -> LocalRunner:
    BurnishUser.plan = plan
    kinds = {_class(kind, plan.options): weight for kind, weight in plan.options.users.items()}
    for kind, weight in kinds.items():
        kind.weight = weight
    if plan.options.is_open:
        ArrivalsUser.kinds, ArrivalsUser.shape = kinds, shape
    environment = Environment(
        user_classes=[ArrivalsUser] if plan.options.is_open else list(kinds),
        shape_class=Course(plan, shape),
        host=plan.options.host,
        stop_timeout=plan.options.timeout_seconds + SPARE_SECONDS,
    )
    for kind in kinds:
        kind.host = plan.options.host
    return environment.create_local_runner()


def _class(kind: User, options: Options) -> type[BurnishUser]:
    """Who comes once, as everybody in an open loop, has no model to keep to."""
    return MixedUser if options.is_open and kind is User.CHAT else USERS[kind]


def _signals(plan: Plan) -> list[int]:
    """What is caught from now on. The second one ends the process at once."""
    caught: list[int] = []

    def catch(number: int) -> None:
        caught.append(number)
        if len(caught) > 1:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, catch, number)
    return caught


def _watch_lag(plan: Plan) -> None:
    """How late this loop comes to what is due: what it measures is late by as much."""
    while True:
        due = time.monotonic() + LAG_LOOK_SECONDS
        gevent.sleep(LAG_LOOK_SECONDS)
        plan.measurement.add_lag(max(0.0, time.monotonic() - due), plan.now)


def _watch(plan: Plan, runner: LocalRunner, progress: Callable[[Measurement, float], None]) -> None:
    seconds = plan.measurement.row_seconds
    number = 0
    while True:
        users = 0 if plan.options.is_open else runner.user_count
        plan.measurement.look(plan.now, time.process_time(), users)
        progress(plan.measurement, plan.now)
        number += 1
        gevent.sleep(max(0.0, number * seconds + 0.5 - plan.now))
