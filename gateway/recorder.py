"""The record of inference: what was asked, what was answered and how it went, on disk before the last byte (promise 1).

Owns what is recorded and what is not, and what becomes of an answer whose record cannot be written. A stream's events
are kept as they go out and put together by the writer's thread; on the event loop there is one append for each.
Does not know how answers are made, nor how records are stored (`adapters.writer`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from adapters.completions import Completion, Status, try_to_write
from adapters.errors import NotRecorded
from adapters.measuring import observe
from adapters.responses import StoredResponse, put_response
from adapters.settings import Recording
from adapters.turns import conversation_unit
from adapters.writer import Writer
from gateway.endpoints import Call
from gateway.protocol.answers import token_counts
from gateway.protocol.assemble import ASSEMBLIES, Assembly

log = logging.getLogger("burnish.recorder")

FOLD_BYTES = 32 * 1024
"""Events of one stream that wait as they came: about 0.3 ms to put together, and a tenth as long afterwards."""

PROBE_SECONDS = 1.0
"""How often a database that cannot write is tried again."""

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "completed": "stop",
    "max_output_tokens": "length",
}
"""Anthropic's reasons and those of the responses API, in the chat API's words."""

NOT_RECORDED = ((b"x-burnish-recorded", b"no"),)

EMBEDDINGS = "/v1/embeddings"

Answer = dict[str, Any]
HeaderList = tuple[tuple[bytes, bytes], ...]
Listener = Callable[[Completion], None]


class Record:
    """One request on its way into the record: of the event loop until it is settled, then of the writer's thread."""

    __slots__ = (
        "_assembly",
        "_began",
        "_blocks",
        "_created",
        "_first_byte_at",
        "_size",
        "at_fault",
        "call",
        "id",
        "settled",
        "status",
        "wanted",
    )

    def __init__(self, call: Call, wanted: bool) -> None:
        self.call = call
        self.wanted = wanted
        self.settled = not wanted
        self.id = call.request_id
        """Until an answer has named its own."""
        self.at_fault = True
        """Whether an error is the engine's, or ours, and not the client's."""
        self.status: Status | None = None
        """How it ended; None: not yet, or it is not wanted."""
        self._created = time.time()
        self._began = call.began
        self._first_byte_at: float | None = None
        self._blocks: list[bytes] = []
        self._size = 0
        self._assembly: Assembly | None = None

    def keep(self, events: bytes) -> None:
        """Remembers whole events that are about to go to the client."""
        if self.settled:
            return
        if self._first_byte_at is None:
            self._first_byte_at = time.monotonic()
        self._blocks.append(events)
        self._size += len(events)
        if self._size > FOLD_BYTES:
            self._fold()

    def settle(
        self, status: Status, answer: Answer | None, usage: Answer | None, error_code: str | None
    ) -> Callable[[], Completion]:
        """Ends the record; what it returns makes the completion, once, in whichever thread."""
        self.settled, self.status = True, status
        seconds = time.monotonic() - self._began
        return functools.partial(self._completion, status, answer, usage, error_code, seconds)

    def _completion(
        self,
        status: Status,
        answer: Answer | None,
        usage: Answer | None,
        error_code: str | None,
        total_seconds: float,
    ) -> Completion:
        call, asked = self.call, self.call.asked
        output = self._output(answer)
        if output is not None and usage:
            output = {**output, "usage": usage}
        self.id = _id(call, output)
        version, user = call.target.version, None if call.user is None else _text(call.user)
        prompt_tokens, completion_tokens = token_counts(None if output is None else output.get("usage"))
        completion = Completion(
            id=self.id,
            created=self._created,
            endpoint=call.endpoint.path,
            route=call.target.name,
            variant=call.target.variant,
            base_model=call.target.base,
            digest=version.digest if version else None,
            propensity=call.propensity,
            pinned=version is not None and call.target.name == version.ref,
            key_id=call.caller.key_id,
            user=user,
            unit=conversation_unit(call.body, user, call.conversation),
            status=status,
            finish_reason=_finish_reason(output),
            error_code=error_code,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            ttft_seconds=None if self._first_byte_at is None else self._first_byte_at - self._began,
            total_seconds=total_seconds,
            metadata=_metadata(asked),
            request=_request(call),
            output=output,
        )
        if call.passage is not None:
            call.passage.completion = completion
        if call.assignment is None:
            return completion
        observation = observe(completion, call.assignment, at_fault=self.at_fault)
        return replace(completion, observation=observation)

    def _output(self, answer: Answer | None) -> Answer | None:
        if answer is None:
            self._fold()
            return None if self._assembly is None else self._assembly.answer()
        return _without_vectors(answer) if self.call.endpoint.path == EMBEDDINGS else answer

    def _fold(self) -> None:
        """Puts the events that wait to those before them."""
        if self._blocks:
            self._assembly = self._assembly or ASSEMBLIES[self.call.endpoint.path]()
            self._assembly.feed(b"".join(self._blocks))
            self._blocks, self._size = [], 0


class Recorder:
    """Writes records, and decides what may go out without one. `lost` counts the records that could not be written."""

    def __init__(self, writer: Writer, settings: Recording, listeners: Sequence[Listener] = ()) -> None:
        """`listeners` are told of every completion that was made, in the writer's thread and just before it is written:
        they wait for nothing, and what they raise is nobody's loss."""
        self._writer = writer
        self._settings = settings
        self._listeners = tuple(listeners)
        self._refuses = settings.on_failure == "refuse"
        self._probed_at = 0.0
        self._counting = threading.Lock()
        self.lost = 0

    def begin(self, call: Call) -> Record:
        """The record of a request that was admitted. Raises NotRecorded while it is known that none could be written."""
        wanted = (
            self._settings.enabled
            and call.endpoint.records
            and call.caller.records
            and not call.caller.may_evaluate
            and call.asked.get("store") is not False
        )
        if wanted and self._refuses and self._writer.failing:
            self._probe()
            raise _refusal()
        return Record(call, wanted)

    def warning(self, record: Record) -> HeaderList:
        """What the head of a stream says of a record that will probably not be written."""
        return NOT_RECORDED if record.wanted and self._writer.failing else ()

    async def complete(
        self,
        record: Record,
        answer: Answer | None,
        *,
        usage: Answer | None = None,
        kept: StoredResponse | None = None,
    ) -> HeaderList:
        """Returns, with what the answer's head says of it, once the answer is on disk: the last byte may go out.

        `answer` is None for a stream: its events have been kept. `kept` is stored with it. Raises NotRecorded where the
        settings want no answer to go out without a record.
        """
        waits: list[asyncio.Future[None]] = []
        if not record.settled:
            waits.append(self._writer.put_soon(self._settle(record, Status.COMPLETE, answer, usage, None)))
        if kept is not None:
            waits.append(self._writer.submit_soon(functools.partial(put_response, response=kept)))
        failure = await _first_failure(waits)
        if failure is not None:
            self._lose(record, failure)
            if self._refuses:
                raise _refusal() from failure
            return NOT_RECORDED
        return ((b"x-burnish-completion", record.id.encode()),) if record.wanted else ()

    async def fail(
        self,
        record: Record,
        status: Status,
        error_code: str,
        usage: Answer | None = None,
        *,
        at_fault: bool = True,
    ) -> None:
        """Records a request that has no whole answer. Never raises: there is no answer to hold back."""
        record.at_fault = at_fault
        if not record.settled:
            made = self._settle(record, status, None, usage, error_code)
            failure = await _first_failure([self._writer.put_soon(made)])
            if failure is not None:
                self._lose(record, failure)

    def abandon(self, record: Record, error_code: str) -> None:
        """Records a request that was cut off, unless it is settled; waits for nothing, so that nothing can stop it."""
        if not record.settled:
            written = self._writer.put(self._settle(record, Status.INCOMPLETE, None, None, error_code))
            written.add_done_callback(lambda done: self._lose_if_failed(record, done.exception()))

    def _settle(
        self,
        record: Record,
        status: Status,
        answer: Answer | None,
        usage: Answer | None,
        error_code: str | None,
    ) -> Callable[[], Completion]:
        """Ends the record; what it returns makes the completion, in the writer's thread, and tells who listens."""
        return functools.partial(self._make, record.settle(status, answer, usage, error_code))

    def _make(self, made: Callable[[], Completion]) -> Completion:
        completion = made()
        for listener in self._listeners:
            try:
                listener(completion)
            except Exception:  # whoever listens must not cost anybody a record
                log.exception("listener_failed completion=%s", completion.id)
        return completion

    def _lose_if_failed(self, record: Record, failure: BaseException | None) -> None:
        if failure is not None:
            self._lose(record, failure)

    def _lose(self, record: Record, failure: BaseException) -> None:
        """Never silent. The database's own words alone: its statements hold prompts."""
        with self._counting:
            self.lost += 1
        cause = failure.__cause__ or failure
        words = getattr(cause, "orig", None) or (cause if isinstance(failure, NotRecorded) else type(cause))
        log.error(
            "completion_not_recorded request=%s completion=%s route=%s lost=%d: %s",
            record.call.request_id,
            record.id,
            record.call.target.name,
            self.lost,
            str(words).splitlines()[0],
        )

    def _probe(self) -> None:
        """Tries the database now and then; the writer sees whether it has come back."""
        now = time.monotonic()
        if now - self._probed_at > PROBE_SECONDS:
            self._probed_at = now
            self._writer.submit(try_to_write)


async def _first_failure(waits: list[asyncio.Future[None]]) -> Exception | None:
    """Waits for all."""
    failures = [result for wait in waits if (result := await _failure(wait)) is not None]
    return failures[0] if failures else None


async def _failure(wait: asyncio.Future[None]) -> Exception | None:
    try:
        await wait
    except Exception as error:
        return error
    return None


def _refusal() -> NotRecorded:
    return NotRecorded(
        "The server cannot record answers now, and is set up to give none without a record.",
        retry_after_seconds=1,
    )


# -- what is read off a request and its answer -------------------------------------------------------
def _id(call: Call, output: Answer | None) -> str:
    """The answer's id as the client got it; the request's own, which the client got as well, where there is none."""
    found = None if output is None else output.get("id")
    if isinstance(found, str) and found.isascii() and found.isprintable() and found:
        return found
    if output is not None and call.endpoint.path == EMBEDDINGS:
        return call.endpoint.id_prefix + call.request_id.removeprefix("req_")
    return call.request_id


def _metadata(asked: Answer) -> dict[str, str]:
    given = asked.get("metadata")
    if not isinstance(given, dict):
        return {}
    return {_text(name): _text(value) for name, value in given.items() if isinstance(value, str)}


def _text(value: str) -> str:
    """No database stores NUL."""
    return value.replace("\x00", "\ufffd")


def _request(call: Call) -> Answer:
    """The client's own words; where they go on from an earlier response, the conversation that the engine got."""
    if call.asked.get("previous_response_id") is None:
        return call.asked
    return {**call.asked, "input": call.body["input"]}


def _without_vectors(answer: Answer) -> Answer:
    """Embeddings are many and large, and nothing is learned from them: their number and sizes stay."""
    vectors = answer.get("data")
    items = [
        {**item, "embedding": None, "size": len(item.get("embedding") or ())}
        for item in (vectors if isinstance(vectors, list) else ())
        if isinstance(item, dict)
    ]
    return {**answer, "data": items}


def _finish_reason(output: Answer | None) -> str | None:
    """Why the first choice ended, in the chat API's words."""
    if output is None:
        return None
    choices = output.get("choices")
    if isinstance(choices, list):
        first = choices[0] if choices and isinstance(choices[0], dict) else {}
        reason = first.get("finish_reason")
    elif output.get("object") == "response":
        reason = _response_reason(output)
    else:
        reason = output.get("stop_reason")
    return FINISH_REASONS.get(reason, reason) if isinstance(reason, str) else None


def _response_reason(output: Answer) -> Any:
    items = output.get("output")
    if any(isinstance(i, dict) and i.get("type") == "function_call" for i in items or ()):
        return "tool_calls"
    details = output.get("incomplete_details")
    return details.get("reason") if isinstance(details, dict) else output.get("status")
