"""Which request gets which answer: vLLM's routes, and what is counted of them.

`wire` moves bytes, `playback` keeps time, `adapters` loads. Knows nothing of the gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import orjson

from loadtests.fake_engine import errors, prompts
from loadtests.fake_engine.adapters import LoadedAdapters
from loadtests.fake_engine.chat import ChatReply
from loadtests.fake_engine.completions import CompletionReply
from loadtests.fake_engine.control import Control
from loadtests.fake_engine.embeddings import EmbeddingReply
from loadtests.fake_engine.errors import Rejected
from loadtests.fake_engine.generation import Generation, Speech, count_prompt, recite, speak
from loadtests.fake_engine.language import Weights
from loadtests.fake_engine.messages import MessageReply
from loadtests.fake_engine.metrics import Measured, Metrics
from loadtests.fake_engine.playback import Pace, play, spoil_control
from loadtests.fake_engine.replies import Reply, random_id
from loadtests.fake_engine.responses import ResponsesReply
from loadtests.fake_engine.settings import Ending, Fault, Settings, Stats
from loadtests.fake_engine.slots import AdapterSlots
from loadtests.fake_engine.wire import Connection, Request

VERSION = "0.32.0"
LOGGED_REQUESTS = 200
EMBEDDINGS = "/v1/embeddings"
SILENCE = Speech((), "stop")
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

Answering = Coroutine[Any, Any, None] | None
Route = Callable[[Request, Connection], Answering]

_REPLIES: dict[str, Callable[[Generation], Reply]] = {
    "/v1/chat/completions": ChatReply,
    "/v1/completions": CompletionReply,
    "/v1/responses": ResponsesReply,
    "/v1/messages": MessageReply,
}


class Engine:
    """One fake engine's state. `handle` is what a `Connection` calls for each request."""

    def __init__(
        self,
        model: str,
        *,
        max_loras: int = 4,
        max_model_len: int = 4096,
        seed: int = 0,
        api_key: str | None = None,
        embedding_size: int = 0,
    ) -> None:
        """`embedding_size`: how many numbers an embedding has; 0: it has no embeddings, as vLLM with a chat model."""
        self._model = model
        self._max_model_len = max_model_len
        self._seed = seed
        self._api_key = api_key
        self._adapters = LoadedAdapters(model, model, max_model_len)
        self._slots = AdapterSlots(max_loras)
        self._settings = Settings()
        self.stats = Stats()
        self.metrics = Metrics(model, max_model_len, self._slots)
        self._log: deque[Request] = deque(maxlen=LOGGED_REQUESTS)
        self._replies = dict(_REPLIES)
        if embedding_size:
            self._replies[EMBEDDINGS] = partial(EmbeddingReply, size=embedding_size)
        self._routes: dict[tuple[str, str], Route] = {
            ("GET", "/health"): lambda _, wire: wire.respond(200, b"", None),
            ("GET", "/version"): lambda _, wire: wire.respond(200, orjson.dumps({"version": VERSION})),
            ("GET", "/v1/models"): lambda _, wire: wire.respond(200, orjson.dumps(self._adapters.cards())),
            ("POST", "/v1/load_lora_adapter"): self._load,
            ("POST", "/v1/unload_lora_adapter"): self._unload,
            ("GET", "/metrics"): lambda _, wire: wire.respond(200, self.metrics.text(), PROMETHEUS_TEXT),
            **{("POST", path): self._generate for path in self._replies},
            **Control(self._settings, self.stats, self._log, self._forget).routes,
        }

    def handle(self, request: Request, wire: Connection) -> Answering:
        self.stats.paths[f"{request.method} {request.path}"] += 1
        try:
            return self._route(request)(request, wire)
        except Rejected as rejected:
            failure = rejected.status, rejected.body
            wire.respond(*(errors.for_anthropic(*failure) if request.path == "/v1/messages" else failure))
            return None

    def _route(self, request: Request) -> Route:
        if not self._may_enter(request):
            raise Rejected(errors.UNAUTHORIZED)
        route = self._routes.get((request.method, request.path))
        if route is None:
            raise Rejected(self._unrouted(request))
        return route if request.path in self._replies else self._spoilt(request, route)

    def _may_enter(self, request: Request) -> bool:
        guarded = self._api_key is not None and request.path.startswith("/v1/")
        return not guarded or request.headers.get("authorization") == f"Bearer {self._api_key}"

    def _unrouted(self, request: Request) -> errors.Failure:
        if any(path == request.path for _, path in self._routes):
            return errors.METHOD_NOT_ALLOWED
        if request.method == "GET" and request.path.startswith("/v1/responses/"):
            return errors.response_unknown(request.path.removeprefix("/v1/responses/"))
        return errors.NOT_FOUND

    def _spoilt(self, request: Request, route: Route) -> Route:
        """A route that generates nothing goes wrong only where `fault_paths` names it."""
        if not self._settings.fault_paths or request.path.startswith("/_fake/"):
            return route
        fault = self._settings.take_fault(request.path, None)
        if fault is None:
            return route
        self.stats.faults += 1
        slow = self._settings.slow_seconds
        return lambda request, wire: spoil_control(wire, fault, slow, lambda: route(request, wire))

    # Generation.

    def _generate(self, request: Request, wire: Connection) -> Answering:
        self._log.append(request)
        end = self.stats.begin()
        try:
            body = _read_json(request, *prompts.REQUIRED[request.path])
            fault = self._take_fault(request, body.get("model") or self._model)
            plan = self._plan(request, body, wrong=fault is Fault.WRONG_ADAPTER)
            reply, pace = self._replies[request.path](plan), self._pace(fault)
            streams = bool(body.get("stream")) and request.path != EMBEDDINGS
            if streams or not pace.instant:
                return self._answer(wire, plan, reply, streams, pace, end)
            whole = reply.whole()
        except Exception:
            end(Ending.REJECTED)
            raise
        wire.respond(200, whole)
        measured = self.metrics.begin(plan.prompt_tokens)
        measured.scheduled()
        self._count(plan, measured)(len(plan.tokens))
        end(Ending.COMPLETED)
        measured.end(Ending.COMPLETED, plan.speech.finish_reason)
        return None

    def _plan(self, request: Request, body: dict[str, Any], *, wrong: bool) -> Generation:
        model = body.get("model") or self._model
        weights = self._adapters.weights_of(model)
        if wrong:
            weights = self._adapters.other_weights(model)
        try:
            asked = prompts.read(request.path, body)
            self._check_lengths(asked)
            return Generation(
                body=body,
                model=model,
                weights=weights,
                prompts=asked.prompts,
                speech=SILENCE if request.path == EMBEDDINGS else self._speech(model, weights, body, asked),
                id=request.headers.get("x-request-id") or random_id(),
                seed=self._seed,
                noise=self._settings.logprob_noise,
                above_base=self._settings.likelihood_of(model),
            )
        except (TypeError, ValueError, KeyError, AttributeError) as problem:
            raise Rejected(errors.invalid(str(problem), "body")) from problem

    def _speech(self, model: str, weights: Weights, body: dict[str, Any], asked: prompts.Asked) -> Speech:
        answer = self._settings.answer_of(model, asked.last_user_message)
        if answer is not None:
            return recite(answer, asked.max_tokens)
        return speak(weights, body, asked, self._settings.tokens)

    def _check_lengths(self, asked: prompts.Asked) -> None:
        limit = self._max_model_len
        if asked.max_tokens is not None and asked.max_tokens > limit:
            raise Rejected(errors.output_too_long(asked.max_tokens, limit, asked.max_tokens_param))
        longest = max(map(count_prompt, asked.prompts))
        if longest > limit:
            raise Rejected(errors.prompt_too_long(longest, limit))

    async def _answer(
        self,
        wire: Connection,
        plan: Generation,
        reply: Reply,
        streams: bool,
        pace: Pace,
        end: Callable[[Ending], None],
    ) -> None:
        """What takes time. Ends as aborted where the client leaves, which cancels this."""
        ending, slot = Ending.ABORTED, None
        measured = self.metrics.begin(plan.prompt_tokens)
        try:
            if plan.model != self._model:
                await self._slots.take(plan.model)
                slot = plan.model
            measured.scheduled()
            count = self._count(plan, measured)
            ending = await play(wire, reply, len(plan.tokens), streams, pace, count)
        finally:
            if slot is not None:
                self._slots.give_back(slot)
            end(ending)
            measured.end(ending, plan.speech.finish_reason)

    def _count(self, plan: Generation, measured: Measured) -> Callable[[int], None]:
        choices = plan.n * len(plan.prompts)

        def count(steps: int) -> None:
            self.stats.tokens += steps * choices
            measured.say(steps * choices, steps)

        return count

    def _forget(self) -> None:
        self._log.clear()
        self.metrics.reset()

    def _take_fault(self, request: Request, model: str) -> Fault | None:
        self.stats.models[str(model)] += 1
        fault = self._settings.take_fault(request.path, model)
        self.stats.faults += fault is not None
        return fault

    def _pace(self, fault: Fault | None) -> Pace:
        settings = self._settings

        def crowd() -> float:
            return settings.crowd_seconds * (self.stats.active - 1)

        return Pace(
            settings.ttft_seconds,
            settings.itl_seconds,
            settings.slow_seconds,
            None if fault is Fault.WRONG_ADAPTER else fault,
            settings.fault_after,
            crowd if settings.crowd_seconds else None,
        )

    # Adapters.

    def _load(self, request: Request, wire: Connection) -> Answering:
        self._log.append(request)
        body = _read_json(request, "lora_name", "lora_path")
        fault = self._settings.take_fault(request.path, body["lora_name"], loading=True)
        self.stats.faults += fault is not None
        return self._loading(body, wire, fault)

    async def _loading(self, body: dict[str, Any], wire: Connection, fault: Fault | None) -> None:
        await asyncio.sleep(self._settings.load_seconds)
        try:
            if fault is Fault.LOAD_FAILS:
                raise Rejected(errors.LOAD_FAILED)
            said = self._adapters.load(
                body["lora_name"],
                body["lora_path"],
                in_place=bool(body.get("load_inplace")),
                as_base=fault is Fault.LOAD_AS_BASE,
            )
        except Rejected as rejected:
            wire.respond(rejected.status, rejected.body)
        else:
            self.stats.loads += 1
            wire.respond(200, said.encode(), None)

    def _unload(self, request: Request, wire: Connection) -> None:
        self._log.append(request)
        said = self._adapters.unload(_read_json(request, "lora_name")["lora_name"])
        self.stats.unloads += 1
        wire.respond(200, said.encode(), None)


def _read_json(request: Request, *required: str) -> dict[str, Any]:
    """The body, checked as FastAPI checks it before vLLM sees it. Raises Rejected."""
    if request.headers.get("content-type", "").partition(";")[0].lower() != "application/json":
        raise Rejected(errors.NOT_JSON)
    try:
        body = orjson.loads(request.body)
    except json.JSONDecodeError as problem:
        raise Rejected(errors.bad_json(problem.pos, problem.msg)) from problem
    if not isinstance(body, dict):
        raise Rejected(errors.invalid("Input should be a valid dictionary or object", "body"))
    for field in required:
        if body.get(field) is None:
            raise Rejected(errors.field_missing(field, body))
    return body
